import pytest
import torch
from accuracy import assert_accurate


@pytest.mark.parametrize("spoil", [torch.zeros_like, torch.neg, lambda g: g * float("nan")])
def test_a_tiny_gradient_that_is_wrong_fails(spoil):
    gradient = torch.randn(64, 33) * 1e-6
    assert_accurate(gradient, gradient.double())
    with pytest.raises(AssertionError):
        assert_accurate(spoil(gradient), gradient.double())


def test_worse_than_plain_torch_fails():
    oracle = torch.randn(1000, dtype=torch.float64)
    plain = oracle.float()
    with pytest.raises(AssertionError, match="plain torch allows"):
        assert_accurate(plain * (1 + 5e-6), oracle, plain)
