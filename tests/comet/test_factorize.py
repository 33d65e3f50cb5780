import pytest
import torch
from safetensors.torch import load_file, save_file

from comet import factorize
from comet.checkpoints import save_checkpoint
from comet.factorize import main, nearest_kronecker
from comet.projections import make_projection
from comet.recipe import ObjectiveRecipe
from comet_kernels import reference


def sum_of_products(size, terms):
    left, right = torch.randn(2, terms, size, size)
    right *= torch.logspace(0, -1, terms)[:, None, None]
    return sum(torch.kron(L, R) for L, R in zip(left, right, strict=True)), left, right


@pytest.mark.parametrize("exact_size", [1024, 1])
def test_a_sum_of_few_products_is_found_again(exact_size, monkeypatch):
    monkeypatch.setattr(factorize, "EXACT_SIZE", exact_size)
    weight, left, right = sum_of_products(6, 3)
    found = nearest_kronecker(weight, 3)
    assert found.errors[1] > 0.02
    assert found.errors[2] < 1e-5
    maps = torch.rand(2, 6, 6)
    expected = reference.factorized_projection(maps, left, right)
    torch.testing.assert_close(
        reference.factorized_projection(maps, found.left, found.right), expected
    )
    torch.testing.assert_close((weight @ maps.flatten(1).T).T.view(2, 6, 6), expected)


def test_no_sum_is_nearer():
    weight = torch.randn(25, 25)
    found = nearest_kronecker(weight, 4)
    regrouped = weight.view(5, 5, 5, 5).transpose(1, 2).reshape(25, 25)
    values = torch.linalg.svdvals(regrouped.double())
    for terms, error in enumerate(found.errors, 1):
        best = values[terms:].norm() / values.norm()
        assert error == pytest.approx(best.item(), rel=1e-5)
    near = sum(torch.kron(L, R) for L, R in zip(found.left, found.right, strict=True))
    assert found.errors[-1] == pytest.approx(((weight - near).norm() / weight.norm()).item())


def test_same_numbers_twice_and_the_callers_generator_is_left_alone(monkeypatch):
    monkeypatch.setattr(factorize, "EXACT_SIZE", 1)
    weight = torch.randn(36, 36)
    state = torch.random.get_rng_state()
    first, second = nearest_kronecker(weight, 2), nearest_kronecker(weight, 2)
    assert torch.equal(first.left, second.left)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_trained_projection_becomes_the_start_of_another_run(tmp_path, capsys):
    weight, _, _ = sum_of_products(4, 2)
    moment = torch.zeros(16, 16)
    tensors = {"module/projection.weight": weight, "optimizer/projection.weight/exp_avg": moment}
    checkpoint = save_checkpoint(tmp_path / "checkpoints", 7, tensors, {}, keep=1)
    output = tmp_path / "start.safetensors"
    main([str(checkpoint), "--terms", "2", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "module/projection.weight: 256 parameters, maps of 4 × 4" in printed
    assert "    2           64         0.0000" in printed
    kronecker = {"projection": "kronecker", "projection_terms": 2}
    recipe = ObjectiveRecipe(**kronecker, projection_start=str(output))
    projection = make_projection(recipe, 4)
    assert torch.equal(projection.left, load_file(output)["left"])
    with pytest.raises(ValueError, match=r"start\.safetensors exists; name another file"):
        main([str(checkpoint), "--output", str(output)])
    with pytest.raises(ValueError, match=r"has left \[2, 4, 4\], expected \[2, 5, 5\]"):
        make_projection(recipe, 5)
    recipe = ObjectiveRecipe(**kronecker, projection_start=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"objective\.projection_start: .*nothing cannot be read"):
        make_projection(recipe, 4)
    with pytest.raises(ValueError, match=r"objective\.projection_start: got .*, expected nothing"):
        ObjectiveRecipe(projection="dense", projection_start=str(output))


def test_what_cannot_be_factorized(tmp_path):
    for weight, message in (
        (torch.zeros(6, 6), r"weight: got shape \[6, 6\], expected \[S², S²\]"),
        (torch.zeros(4, 9), r"weight: got shape \[4, 9\]"),
        (torch.full((4, 4), float("nan")), "weight: got NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest_kronecker(weight, 1)
    with pytest.raises(ValueError, match="terms: got 5, expected 1 to S² = 4"):
        nearest_kronecker(torch.zeros(4, 4), 5)
    several = tmp_path / "several.safetensors"
    save_file({"one": torch.zeros(4, 4), "two": torch.zeros(9, 9)}, several)
    text = tmp_path / "text.safetensors"
    text.write_text("text")
    for arguments, message in (
        ([str(several)], "expected one tensor .* found one, two; name one with --tensor"),
        ([str(several), "--tensor", "three"], "has no three; it has one, two"),
        ([str(text)], "not a safetensors file"),
        ([str(tmp_path / "none")], "none: no such file"),
        ([str(several), "--terms", "33"], "--terms: got 33, expected 1 to 32"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments)
    main([str(several), "--tensor", "one"])  # of zeros: nothing is left over


def test_the_errors_of_a_zero_matrix_are_zero():
    assert nearest_kronecker(torch.zeros(4, 4), 2).errors == [0.0, 0.0]
