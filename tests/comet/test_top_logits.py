"""`top_softened_kl` against its formula written out in float64, and against softened KL where nothing is lost."""

import pytest
import torch
from accounting import Products
from accuracy import relative_rms

import comet_kernels
import comet_kernels.reference
from comet.top_logits import largest_logits, top_softened_kl

V, E, N, K = 101, 12, 9, 7
OPS = [comet_kernels, comet_kernels.reference]


@pytest.fixture
def problem():
    """Student hidden states, weight and bias that require gradients, and the teacher's head."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, size=1.0):
        return size * torch.randn(*shape, generator=generator)

    student = [draw(N, E), draw(V, E, size=0.5), draw(V, size=0.5)]
    # no average of zero: the constant of the tail's gradient must count
    student[1] += 0.3
    teacher = (draw(N, 16), draw(V, 16, size=0.6), draw(V))
    return [tensor.requires_grad_() for tensor in student], teacher


def written_out(student, teacher, count, temperature_N):
    """Loss and KL of every row in float64, with p of length V as the docstring of the module says."""
    hidden, weight, bias = (tensor.double() for tensor in student)
    t_hidden, t_weight, t_bias = (tensor.double() for tensor in teacher)
    temperature = temperature_N.double()[:, None]
    p = torch.softmax((t_hidden @ t_weight.T + t_bias) / temperature, -1)
    top = p.topk(count, -1).indices
    in_top = torch.zeros_like(p, dtype=torch.bool).scatter_(1, top, True)
    tail = p.masked_fill(in_top, 0).sum(-1, keepdim=True)
    p = torch.where(in_top, p, tail / max(V - count, 1))
    log_q = torch.log_softmax((hidden @ weight.T + bias) / temperature, -1)
    kl = torch.special.xlogy(p, p).sum(-1) - (p * log_q).sum(-1)
    return (temperature[:, 0] ** 2 * kl).mean(), kl


def losses_and_gradients(student, *arguments):
    loss, kl = top_softened_kl(*student, *arguments)
    return loss, kl, torch.autograd.grad(3 * loss, student)


@pytest.mark.parametrize("ops", OPS, ids=["fused", "reference"])
@pytest.mark.parametrize("per_row", [False, True])
def test_loss_and_gradients_are_the_formula(problem, ops, per_row):
    student, teacher = problem
    temperature = torch.linspace(0.7, 4, N) if per_row else torch.full((N,), 2.0)
    found = [
        largest_logits(row[None], *teacher[1:], K, t.item())
        for row, t in zip(teacher[0], temperature, strict=True)
    ]
    top = tuple(torch.cat(part) for part in zip(*found, strict=True))
    given = temperature if per_row else 2.0
    loss, kl, gradients = losses_and_gradients(student, top, given, ops)
    expected, expected_kl = written_out(student, teacher, K, temperature)
    assert relative_rms(loss, expected) <= 1e-5
    assert relative_rms(kl, expected_kl) <= 1e-5
    for actual, oracle in zip(gradients, torch.autograd.grad(3 * expected, student), strict=True):
        assert relative_rms(actual, oracle) <= 1e-5
        assert relative_rms(-actual, oracle) > 1


def test_pieces_of_a_few_rows_change_nothing(problem, monkeypatch):
    student, teacher = problem
    top = largest_logits(*teacher, K, 2.0)
    whole = losses_and_gradients(student, top, 2.0, comet_kernels)
    monkeypatch.setenv("COMET_LOGITS_BYTES", str(2 * 4 * 128))
    pieces = losses_and_gradients(student, top, 2.0, comet_kernels)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ops", OPS, ids=["fused", "reference"])
def test_with_every_logit_it_is_the_softened_kl(problem, ops):
    student, teacher = problem
    top = largest_logits(*teacher, V, 2.0)
    assert top[2].isneginf().all()
    loss, kl, gradients = losses_and_gradients(student, top, 2.0, ops)
    expected, expected_kl = comet_kernels.reference.linear_softened_kl(
        *student, *teacher, 2.0, return_kl=True
    )
    assert relative_rms(loss, expected) <= 1e-5
    assert relative_rms(kl, expected_kl) <= 1e-5
    for actual, oracle in zip(gradients, torch.autograd.grad(3 * expected, student), strict=True):
        assert relative_rms(actual, oracle) <= 1e-5


def test_a_shift_of_a_row_changes_nothing(problem):
    student, teacher = problem
    values, pieces, tail = largest_logits(*teacher, K, 2.0)
    shift = torch.linspace(-9, 30, N)
    moved = values + shift[:, None], pieces, tail + shift / 2
    found = losses_and_gradients(student, moved, 2.0, comet_kernels)
    expected = losses_and_gradients(student, (values, pieces, tail), 2.0, comet_kernels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_large_logits_keep_their_digits(problem):
    student, teacher = problem
    with torch.no_grad():
        student[0] *= 300
    top = largest_logits(*teacher, K, 2.0)
    loss, _, gradients = losses_and_gradients(student, top, 2.0, comet_kernels)
    expected, _ = written_out(student, teacher, K, torch.full((N,), 2.0))
    assert relative_rms(loss, expected) <= 1e-5
    for actual, oracle in zip(gradients, torch.autograd.grad(3 * expected, student), strict=True):
        assert relative_rms(actual, oracle) <= 1e-4


@pytest.mark.parametrize("ops", OPS, ids=["fused", "reference"])
def test_partial_gradients_no_gradients_and_no_rows(problem, ops):
    student, teacher = problem
    top = largest_logits(*teacher, K, 2.0)
    loss, _, gradients = losses_and_gradients(student, top, 2.0, ops)
    with torch.no_grad():
        assert top_softened_kl(*student, top, 2.0, ops)[0] == loss
    for position, tensor in enumerate(student):
        alone = [one if one is tensor else one.detach() for one in student]
        found = torch.autograd.grad(3 * top_softened_kl(*alone, top, 2.0, ops)[0], tensor)
        torch.testing.assert_close(found[0], gradients[position])
    none = tuple(part[:0] for part in top)
    loss, kl = top_softened_kl(student[0][:0], *student[1:], none, 2.0, ops)
    assert loss == 0
    assert kl.shape == (0,)
    assert not torch.autograd.grad(loss, student[1])[0].any()


@pytest.mark.parametrize("ops", OPS, ids=["fused", "reference"])
@pytest.mark.parametrize("count", [K, V])
def test_a_student_close_to_its_teacher_at_a_high_temperature(problem, ops, count):
    """What is left is small beside log V, near which log p and log q are."""
    student, _ = problem
    teacher = [tensor.detach().clone() for tensor in student]
    with torch.no_grad():
        student[0] += 0.03 * torch.randn(student[0].shape)
    top = largest_logits(*teacher, count, 100.0)
    loss, kl = top_softened_kl(*student, top, 100.0, ops)
    _, truth = written_out(student, teacher, count, torch.full((N,), 100.0))
    assert ((kl.double() - truth).abs() <= 1e-3 * truth + 2e-8).all()
    assert relative_rms(loss, (1e4 * truth).mean()) <= 1e-2
    same = top_softened_kl(*teacher, top, 100.0, ops)[1]
    assert (same >= 0).all()


def test_without_a_bias(problem):
    student, teacher = problem
    top = largest_logits(teacher[0], teacher[1], None, K, 2.0)
    fused, plain = (top_softened_kl(*student[:2], None, top, 2.0, ops)[0] for ops in OPS)
    assert relative_rms(fused, plain.double()) <= 1e-5


def test_under_autocast_the_result_stays_near(problem):
    student, teacher = problem
    top = largest_logits(*teacher, K, 2.0)
    expected = losses_and_gradients(student, top, 2.0, comet_kernels)
    halved = [tensor.detach().bfloat16().requires_grad_() for tensor in student]
    loss, _, gradients = losses_and_gradients(halved, top, 2.0, comet_kernels)
    assert relative_rms(loss, expected[0]) <= 2e-2
    for actual, oracle in zip(gradients, expected[2], strict=True):
        assert actual.dtype == torch.bfloat16
        assert relative_rms(actual, oracle) <= 2e-2
    with torch.autocast("cpu", torch.bfloat16):
        again = losses_and_gradients(student, top, 2.0, comet_kernels)
    assert relative_rms(again[0], expected[0]) <= 2e-2


def test_no_nan_next_to_the_factors_of_products(problem):
    """V = 101 is padded, and a CPU's matrix unit may multiply the padding by 0."""
    student, teacher = problem
    top = largest_logits(*teacher, K, 2.0)
    torch.use_deterministic_algorithms(True)  # fills with NaN what is allocated
    try:
        with Products() as products:
            found = losses_and_gradients(student, top, 2.0, comet_kernels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert products.seen
    assert all(tensor.isfinite().all() for tensor in (*found[:2], *found[2]))


def test_the_largest_logits_are_found_a_few_rows_at_a_time(problem, monkeypatch):
    _, teacher = problem
    whole = largest_logits(*teacher, K, 1.5)
    monkeypatch.setattr("comet.top_logits.TEACHER_BYTES", 3 * 4 * V)
    pieces = largest_logits(*teacher, K, 1.5)
    torch.testing.assert_close(pieces, whole)
    logits = teacher[0] @ teacher[1].T + teacher[2]
    torch.testing.assert_close(whole[0], logits.sort(-1, descending=True).values[:, :K])
    rest = logits.scatter(1, whole[1], -float("inf")).div(1.5).logsumexp(-1)
    torch.testing.assert_close(whole[2], rest)
