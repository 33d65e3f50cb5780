import pytest
import torch
from accuracy import relative_rms
from torch.nn.functional import cross_entropy, linear

from comet.factored_logits import FactoredLogits, cross_entropy_sum, entropy

VOCABULARY = 40


def logits_of(tokens, bias=True):
    torch.manual_seed(5)
    return FactoredLogits(
        torch.randn(tokens, 6).requires_grad_(),
        torch.randn(VOCABULARY, 6).requires_grad_(),
        torch.randn(VOCABULARY).requires_grad_() if bias else None,
    )


@pytest.fixture
def _two_tokens_at_once(monkeypatch):
    monkeypatch.setenv("COMET_LOGITS_BYTES", str(4 * 4 * VOCABULARY * 2))


@pytest.mark.usefixtures("_two_tokens_at_once")
@pytest.mark.parametrize("bias", [True, False])
def test_entropy_in_pieces_is_that_of_the_softmax(bias):
    logits = logits_of(7, bias)
    assert len(list(logits.pieces(copies=4))) == 4
    p = linear(*(None if one is None else one.detach().double() for one in logits)).softmax(-1)
    found = entropy(logits)
    assert not found.requires_grad
    assert relative_rms(found, -(p * p.log()).sum(-1)) <= 1e-6
    assert entropy(logits.at(slice(0))).shape == (0,)


def test_a_certain_distribution_has_no_entropy():
    logits = FactoredLogits(torch.tensor([[300.0]]), torch.tensor([[1.0], [-1.0]]), None)
    assert entropy(logits) == 0


@pytest.mark.usefixtures("_two_tokens_at_once")
@pytest.mark.parametrize("bias", [True, False])
def test_cross_entropy_in_pieces_and_its_gradients_are_torchs(bias):
    logits, labels = logits_of(7, bias), torch.randint(VOCABULARY, (7,))
    exact = [None if one is None else one.detach().double().requires_grad_() for one in logits]
    expected = cross_entropy(linear(*exact), labels, reduction="sum")
    expected.backward()
    found = cross_entropy_sum(logits, labels)
    found.backward()
    assert relative_rms(found, expected) <= 1e-6
    for one, other in zip(logits, exact, strict=True):
        if one is not None:
            assert relative_rms(one.grad, other.grad) <= 1e-5


@pytest.mark.usefixtures("_two_tokens_at_once")
def test_cross_entropy_keeps_no_logits():
    kept = []
    logits, labels = logits_of(50), torch.randint(VOCABULARY, (50,))
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.shape), lambda _: _):
        cross_entropy_sum(logits, labels)
    assert (2, VOCABULARY) not in kept


def test_without_tokens_the_loss_is_0_and_so_are_the_gradients():
    logits = logits_of(3).at(slice(0))
    found = cross_entropy_sum(logits, torch.zeros(0, dtype=torch.long))
    found.backward()
    assert found == 0
    assert logits.weight.grad.abs().max() == 0
    assert logits.bias.grad.abs().max() == 0
