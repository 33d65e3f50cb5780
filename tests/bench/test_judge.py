"""What a benchmark refuses to time: wrong results of Comet, other results of others, gradients that are missing."""

import pytest
import torch

from bench.cases import Case, differentiate
from bench.judge import largest_error


def setup():
    torch.manual_seed(0)
    expected = {"output": torch.randn(()), "student": torch.randn(4, 5)}
    return expected, {"student": expected["student"], "teacher": torch.randn(4, 5)}


def test_the_largest_error_is_reported():
    expected, prepared = setup()
    found = {**expected, "student": expected["student"] * (1 + 4e-6)}
    error = largest_error("comet", found, expected, prepared, torch.float32)
    assert error == pytest.approx(4e-6, rel=0.1)


@pytest.mark.parametrize("spoilt", [torch.zeros_like, torch.neg, lambda found: 0.8 * found])
@pytest.mark.parametrize("name", ["comet", "liger-kl-div"])
def test_another_result_fails(name, spoilt):
    expected, prepared = setup()
    found = {**expected, "student": spoilt(expected["student"])}
    with pytest.raises(AssertionError, match=f"{name}, student: relative RMS error"):
        largest_error(name, found, expected, prepared, torch.bfloat16)


def test_others_may_round_more_than_comet():
    expected, prepared = setup()
    found = {name: value * 1.03 for name, value in expected.items()}
    assert largest_error("liger-kl-div", found, expected, prepared, torch.bfloat16) > 0.02
    with pytest.raises(AssertionError):
        largest_error("comet", found, expected, prepared, torch.bfloat16)


def test_a_missing_gradient_fails():
    expected, prepared = setup()
    with pytest.raises(AssertionError, match="comet has no gradient of student"):
        largest_error("comet", {"output": expected["output"]}, expected, prepared, torch.float32)


def test_a_gradient_of_what_was_replaced_is_not_due():
    expected, _ = setup()
    prepared = {"weight": torch.randn(3)}
    assert largest_error("dense", expected, expected, prepared, torch.float32) == 0


def test_without_gradients_there_is_only_the_output():
    case = Case({"N": 3}, direction="no-grad")
    assert str(case) == "N3-float32-cpu-no-grad"
    found = differentiate(lambda x: x.sum(), {"x": torch.ones(3, requires_grad=case.tracked)})
    assert found.keys() == {"output"}
