import pytest
import torch

import comet_kernels
import comet_kernels.reference
from comet import projections
from comet.projections import make_projection, masked_mse
from comet.recipe import ObjectiveRecipe

KINDS = ["identity", "dense", "lowrank", "kronecker"]


def attention_maps(batch=3, length=6):
    mask = torch.arange(length) < torch.tensor([length, 4, 2])[:batch, None]
    pairs = mask[:, :, None] & mask[:, None, :]
    maps = [torch.rand(batch, length, length).where(pairs, 0.0) for _ in range(2)]
    return *maps, mask


@pytest.mark.parametrize("kind", ["identity", "dense", "kronecker"])
def test_training_starts_from_the_plain_squared_error(kind):
    student, teacher, mask = attention_maps()
    projection = make_projection(ObjectiveRecipe(projection=kind), 8)
    loss = projection.loss(student, teacher, mask, comet_kernels)
    torch.testing.assert_close(loss, masked_mse(student, teacher, mask))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("length", [6, 8])
def test_each_kind_learns_and_every_parameter_gets_a_gradient(kind, length):
    student, teacher, mask = attention_maps(length=length)
    sizes = {"projection_rank": 20} if kind == "lowrank" else {}
    projection = make_projection(ObjectiveRecipe(projection=kind, **sizes), 8)
    optimizer = torch.optim.Adam(projection.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = projection.loss(student, teacher, mask, comet_kernels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(value.grad.abs().max() > 0 for value in projection.parameters())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("kind", "sizes", "parameters"),
    [
        ("identity", {}, 0),
        ("dense", {}, 8**4),
        ("lowrank", {"projection_rank": 5}, 2 * 5 * 64),
        ("kronecker", {"projection_terms": 3}, 2 * 3 * 64),
    ],
)
def test_parameters_are_as_many_as_documented(kind, sizes, parameters):
    recipe = ObjectiveRecipe(projection=kind, **sizes)
    assert sum(p.numel() for p in make_projection(recipe, 8).parameters()) == parameters


def test_dense_is_a_matrix_on_the_flattened_map():
    projection = make_projection(ObjectiveRecipe(projection="dense"), 4)
    torch.nn.init.normal_(projection.weight)
    maps = torch.rand(2, 4, 4)
    expected = (projection.weight @ maps.flatten(1).T).T.view(2, 4, 4)
    torch.testing.assert_close(projection(maps), expected)


def test_masked_mse_counts_real_pairs_only():
    student, teacher, mask = attention_maps()
    expected = sum(
        (student[b, :n, :n] - teacher[b, :n, :n]).square().sum() for b, n in enumerate((6, 4, 2))
    ) / (36 + 16 + 4)
    torch.testing.assert_close(masked_mse(student + 5 * ~mask[:, :, None], teacher, mask), expected)
    assert masked_mse(student, teacher, torch.zeros_like(mask)) == 0


def test_dense_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(projections, "memory_bytes", lambda: 2**30)
    with pytest.raises(ValueError, match=r"needs 4\.0 GiB .* has 1\.0 GiB; use kronecker"):
        make_projection(ObjectiveRecipe(projection="dense"), 128)


def test_a_rank_above_the_maps_size_is_refused():
    with pytest.raises(ValueError, match=r"at most corpus\.max_length² = 16"):
        make_projection(ObjectiveRecipe(projection="lowrank", projection_rank=17), 4)
