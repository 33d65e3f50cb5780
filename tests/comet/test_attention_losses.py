import pytest
import torch
from accuracy import relative_rms

import comet_kernels
from comet import attention_losses
from comet.attention_losses import map_divergence, map_squares, relation_divergence
from comet.projections import Identity

LENGTHS = (6, 4, 1)


def tensors(heads, size, width=1):
    """Query, key and value `[B, H, S, D]` with gradient, and a mask."""
    torch.manual_seed(heads)
    three = tuple(torch.randn(3, heads, 6, size).mul(width).requires_grad_() for _ in range(3))
    return three, torch.arange(6) < torch.tensor(LENGTHS)[:, None]


def maps_of(heads, size, mask):
    """A head-averaged map from random vectors, without gradient to them but to itself."""
    (query, key, _), _ = tensors(heads, size, 3)
    found = comet_kernels.mean_attention(query, key, mask).detach().requires_grad_()
    return found


def test_squares_count_real_pairs_only():
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    ours, theirs = maps_of(2, 4, mask), maps_of(4, 3, mask)
    expected = sum(
        (ours[b, :n, :n] - theirs[b, :n, :n]).square().sum() for b, n in enumerate(LENGTHS)
    )
    pairs = sum(n * n for n in LENGTHS)
    found = map_squares(ours, theirs, mask, Identity(), comet_kernels, pairs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("padded", [True, False])
def test_divergence_is_the_kl_of_every_real_row(padded):
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None] if padded else None
    ours, theirs = maps_of(2, 4, mask), maps_of(4, 3, mask).detach()
    found = map_divergence(ours, theirs)
    found.backward()
    gradient, ours.grad = ours.grad, None
    exact = ours.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for b, n in enumerate(LENGTHS if padded else (6, 6, 6)):
        for i in range(n):
            p, q = theirs[b, i, :n].double(), exact[b, i, :n]
            expected = expected + (p * (p.log() - q.log()) - p + q).sum()
    expected.backward()
    assert relative_rms(found, expected) <= 1e-5
    assert relative_rms(gradient, exact.grad) <= 1e-5


def test_divergence_of_what_the_student_does_not_attend_to_is_finite():
    ours = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]], requires_grad=True)
    theirs = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    found = map_divergence(ours, theirs)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(ours.grad).all()
    assert map_divergence(theirs, theirs) == 0


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_divergences_of_near_sides_keep_their_digits(distance):
    theirs, _ = tensors(4, 9)
    torch.manual_seed(5)
    ours = tuple((one + distance * torch.randn_like(one)).detach() for one in theirs)
    found = relation_divergence(ours, theirs, None, 4)
    exact = relations_written_out(ours, theirs, None, 4)
    assert relative_rms(found, exact) <= 2e-7 / distance
    scores, noise = torch.randn(3, 6, 6).double(), torch.randn(3, 6, 6).double()
    maps = [one.softmax(-1).float() for one in (scores + distance * noise, scores)]
    s, t = (one.double() for one in maps)
    exact = (t * (t / s).log() - t + s).sum()
    assert relative_rms(map_divergence(*maps), exact) <= 1e-6 / distance


def test_divergences_of_equal_sides_are_never_below_0():
    for seed in range(20):
        torch.manual_seed(seed)
        three = tuple(torch.randn(2, 3, 8, 4) for _ in range(3))
        same = tuple(one * (1 + 1e-7 * torch.randn_like(one)) for one in three)
        assert relation_divergence(same, three, None, 3) >= 0
        one = torch.randn(2, 16, 16).softmax(-1)
        assert map_divergence(one * (1 + 1e-7 * torch.randn_like(one)), one) >= 0


def relations_written_out(student, teacher, mask, heads):
    """Sequence by sequence and head by head, without padding."""
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(student, teacher, strict=True):
        for b in range(len(ours)):
            n = int(mask[b].sum()) if mask is not None else ours.shape[2]
            both = []
            for vectors in (ours, theirs):
                joined = torch.cat(list(vectors[b, :, :n].double()), dim=-1)
                heads_of = joined.split(joined.shape[1] // heads, dim=-1)
                both.append(
                    [(one @ one.T / one.shape[1] ** 0.5).log_softmax(-1) for one in heads_of]
                )
            for log_q, log_p in zip(*both, strict=True):
                total = total + (log_p.exp() * (log_p - log_q)).sum() / heads
    return total


@pytest.mark.parametrize("heads", [1, 4, 12])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_relations_are_minilms(heads, padded, at_once, monkeypatch):
    """Other heads and another width than the teacher's, in pieces, with the gradient of each."""
    room = attention_losses.COPIES * 4 * heads * 6**2 * at_once
    monkeypatch.setattr(attention_losses, "RELATION_BYTES", room)
    student, mask = tensors(2, 6)
    teacher, _ = tensors(4, 9)
    mask = mask if padded else None
    found = relation_divergence(student, teacher, mask, heads)
    found.backward()
    gradients = [one.grad.clone() for one in student]
    exact = tuple(one.detach().double().requires_grad_() for one in student)
    expected = relations_written_out(exact, [one.detach() for one in teacher], mask, heads)
    expected.backward()
    assert relative_rms(found, expected) <= 1e-5
    for gradient, one in zip(gradients, exact, strict=True):
        assert relative_rms(gradient, one.grad) <= 1e-5
    assert all(one.grad is None for one in teacher)


def test_relations_hold_some_samples_at_a_time(monkeypatch):
    monkeypatch.setattr(attention_losses, "RELATION_BYTES", 1)
    student, mask = tensors(2, 6)
    teacher, _ = tensors(4, 9)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.append(one.numel()), lambda _: _
    ):
        relation_divergence(student, teacher, mask, 12)
    assert max(kept, default=0) < 12 * 6 * 6


def test_relations_in_half_precision_are_computed_in_float32():
    student, mask = tensors(2, 6, 3)
    teacher, _ = tensors(4, 9, 3)
    rounded = [tuple(one.detach().bfloat16() for one in three) for three in (student, teacher)]
    expected = relation_divergence(
        *(tuple(one.float() for one in three) for three in rounded), mask, 4
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = relation_divergence(*rounded, mask, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_heads_that_do_not_divide_a_width_are_refused_by_name():
    student, mask = tensors(2, 6)
    teacher, _ = tensors(4, 9)
    with pytest.raises(
        ValueError, match="relation_heads: got 5, expected a divisor of the student's width 12"
    ):
        relation_divergence(student, teacher, mask, 5)
