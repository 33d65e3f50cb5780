import pytest
import torch
from accuracy import relative_rms
from tiny import tiny_model
from torch.nn.functional import log_softmax

import comet_kernels
import comet_kernels.reference
from comet.batch import Batch
from comet.objective import Distiller
from comet.projections import make_projection
from comet.recipe import ObjectiveRecipe, StudentRecipe
from comet.students import make_student
from comet.tap import TappedEncoder

STUDENT = StudentRecipe(layers=2, hidden_size=24, heads=2, intermediate_size=32, dropout=0.0)


def padded_batch(lengths=(9, 5, 12), kd="all"):
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 120, mask.shape).masked_fill(~mask, 1)
    labels = torch.full_like(ids, -100)
    chosen = mask if kd == "all" else mask & (torch.rand(mask.shape) < 0.3)
    return Batch(
        input_ids=ids,
        mask=None if mask.all() else mask,
        kd_positions=chosen.flatten().nonzero().flatten(),
        labels=labels,
        tokens=sum(lengths),
        squared_lengths=sum(n * n for n in lengths),
    )


def distiller_for(architecture, ops, recipe=None, max_length=16):
    torch.manual_seed(7)
    teacher = tiny_model(architecture)
    student = make_student(teacher.config, STUDENT)
    recipe = recipe or ObjectiveRecipe(projection="kronecker")
    projection = make_projection(recipe, max_length)
    if recipe.projection == "kronecker":
        torch.nn.init.normal_(projection.right, std=0.1)
    return Distiller(TappedEncoder(teacher), TappedEncoder(student), projection, recipe, ops)


def losses_and_gradients(distiller, batch):
    losses = distiller(batch)
    losses.total.backward()
    return losses, {name: value.grad for name, value in distiller.named_parameters()}


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
@pytest.mark.parametrize("projection", ["kronecker", "identity"])
def test_fused_and_unfused_agree_on_loss_and_every_gradient(architecture, projection):
    batch = padded_batch()
    recipe = ObjectiveRecipe(projection=projection)
    plain, expected = losses_and_gradients(
        distiller_for(architecture, comet_kernels.reference, recipe), batch
    )
    fused, actual = losses_and_gradients(distiller_for(architecture, comet_kernels, recipe), batch)
    for name in ("total", "kd", "attention"):
        assert relative_rms(getattr(fused, name), getattr(plain, name)) <= 1e-5, name
    assert actual.keys() == expected.keys()
    joined = [torch.cat([g.flatten() for g in found.values()]) for found in (actual, expected)]
    assert relative_rms(*joined) <= 1e-5
    scale = joined[1].norm()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / (gradient.norm() + 1e-3 * scale)
        assert error <= 1e-4, name


@pytest.mark.parametrize("reduction", ["mean", "row"])
def test_the_objective_is_the_papers(reduction):
    """Written out sequence by sequence, without padding, from eager models."""
    recipe = ObjectiveRecipe(
        alpha=0.3, temperature=1.7, projection="identity", attention_reduction=reduction
    )
    distiller = distiller_for("xlm-r", comet_kernels, recipe)
    batch, lengths = padded_batch(), (9, 5, 12)
    found = distiller(batch)
    divergence = squares = 0.0
    with torch.no_grad():
        for row, length in enumerate(lengths):
            ids = batch.input_ids[row : row + 1, :length]
            t, s = (model(ids, None) for model in (distiller.teacher, distiller.student))
            log_t, log_s = (
                log_softmax(model.logits(one.hidden) / 1.7, -1)
                for model, one in ((distiller.teacher, t), (distiller.student, s))
            )
            divergence += 1.7**2 * (log_t.exp() * (log_t - log_s)).sum()
            maps = [
                (one.query @ one.key.transpose(-1, -2) * one.scale).softmax(-1).mean(1)
                for one in (t, s)
            ]
            squares += (maps[0] - maps[1]).square().sum()
    kd = divergence / sum(lengths)
    attention = squares / (sum(n * n for n in lengths) if reduction == "mean" else sum(lengths))
    torch.testing.assert_close(found.kd, kd)
    torch.testing.assert_close(found.attention, attention)
    torch.testing.assert_close(found.total, 0.3 * kd + 0.7 * attention)


@pytest.mark.parametrize("ops", [comet_kernels, comet_kernels.reference])
def test_padding_changes_nothing(ops):
    """The same sequences, padded further, give the same loss."""
    distiller = distiller_for("bert", ops)
    batch = padded_batch()
    width = batch.input_ids.shape[1]
    wider = Batch(
        input_ids=torch.nn.functional.pad(batch.input_ids, (0, 3), value=1),
        mask=torch.nn.functional.pad(batch.mask, (0, 3)),
        kd_positions=batch.kd_positions // width * (width + 3) + batch.kd_positions % width,
        labels=batch.labels,
        tokens=batch.tokens,
        squared_lengths=batch.squared_lengths,
    )
    torch.testing.assert_close(distiller(wider), distiller(batch))


def test_only_student_and_projection_are_trained():
    distiller = distiller_for("bert", comet_kernels)
    before = {name: value.clone() for name, value in distiller.teacher.named_parameters()}
    _, gradients = losses_and_gradients(distiller, padded_batch())
    assert {name.split(".")[0] for name in gradients} == {"student", "projection"}
    assert not any(value.requires_grad for value in distiller.teacher.parameters())
    for name, value in distiller.teacher.named_parameters():
        assert value.grad is None
        assert torch.equal(value, before[name])


def test_kd_on_masked_tokens_only_looks_at_those():
    distiller = distiller_for("bert", comet_kernels)
    batch = padded_batch(kd="masked")
    few = distiller(batch).kd
    everything = distiller(padded_batch()).kd
    assert 0 < len(batch.kd_positions) < batch.tokens
    assert few != everything


def test_different_vocabularies_are_refused():
    teacher = TappedEncoder(tiny_model("bert", 120))
    student = TappedEncoder(tiny_model("bert", 130))
    recipe = ObjectiveRecipe()
    with pytest.raises(ValueError, match="vocabulary has 130 entries, the teacher's 120"):
        Distiller(teacher, student, make_projection(recipe, 8), recipe, comet_kernels)
