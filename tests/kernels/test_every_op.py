"""What every op promises alike, on one table of problems."""

import attention_problems
import linear_problems
import pytest
import torch
from accounting import Products
from accuracy import assert_accurate

import comet_kernels
from comet_kernels import reference
from comet_kernels.ops.mean_attention import pieces
from comet_kernels.ops.softened_kl import linear_pieces

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def softened_kl(ops, dtype, device, columns):
    student, teacher = (torch.randn(6, columns, device=device).to(dtype) for _ in range(2))
    mask = torch.arange(6, device=device) != 4

    def loss(student):
        return ops.softened_kl(student, teacher.to(student.dtype), 2.0, mask)

    return loss, [student]


def linear_softened_kl(ops, dtype, device, columns):
    def side(size):
        shapes = ((70, size), (columns, size), (columns,))
        return [torch.randn(*shape, device=device).mul(0.3).to(dtype) for shape in shapes]

    student, teacher = side(24), side(37)

    def loss(*student):
        sides = *student, *(tensor.to(student[0].dtype) for tensor in teacher)
        return ops.linear_softened_kl(*sides, 2.0)

    return loss, student


def mean_attention(ops, dtype, device, length):
    query, key = (torch.randn(3, 2, length, 19, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(3, length, length, device=device)
    mask = torch.arange(length, device=device) < torch.tensor([[length], [7], [0]], device=device)

    def loss(query, key):
        return (ops.mean_attention(query, key, mask) * weight).sum()

    return loss, [query, key]


def factors(largest, device):
    left, right = (torch.randn(2, largest, largest, device=device) for _ in range(2))
    return [left, right]


def factorized_projection(ops, dtype, device, length):
    map = torch.randn(3, length, length, device=device).softmax(-1).to(dtype)
    weight = torch.randn(3, length, length, device=device)

    def loss(*tensors):
        return (ops.factorized_projection(*tensors) * weight).sum()

    return loss, [map, *factors(length + 2, device)]


def projected_mse(ops, dtype, device, length):
    student, teacher = torch.randn(2, 3, length, length, device=device).softmax(-1).to(dtype)
    mask = torch.arange(length, device=device) < torch.tensor([[length], [7], [0]], device=device)
    student = torch.where(mask[:, :, None] & mask[:, None], student, 0)

    def loss(student, left, right):
        return ops.projected_mse(student, teacher.to(student.dtype), left, right, mask)

    return loss, [student, *factors(length + 2, device)]


OF_LOGITS = [softened_kl, linear_softened_kl]
OF_MAPS = [mean_attention, factorized_projection, projected_mse]
SIZES = [(op, size) for op in OF_LOGITS for size in (33, 1500, 1999, 2000)] + [
    (op, size) for op in OF_MAPS for size in (7, 37)
]
SMALL = [(op, 9) for op in OF_LOGITS + OF_MAPS]


def differentiated(problem, tensors=None):
    """The loss and its gradients."""
    loss, own = problem
    leaves = [tensor.detach().requires_grad_() for tensor in tensors or own]
    found = loss(*leaves)
    return found.detach(), *torch.autograd.grad(found, leaves)


def made(op, dtype, device, size, ops=comet_kernels):
    torch.manual_seed(0)
    return op(ops, dtype, device, size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "size"), SIZES)
def test_uninitialised_memory_reaches_nothing(op, size, dtype, device):
    """Torch fills with NaN what it allocates: at widths that are padded, and lengths that fill no tile."""
    problem = made(op, dtype, device, size)
    oracle_of = made(op, dtype, device, size, reference)
    oracle = differentiated(oracle_of, [tensor.double() for tensor in oracle_of[1]])
    for found, truth in zip(differentiated(problem), oracle, strict=True):
        assert found.isfinite().all()
        assert_accurate(found, truth, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [33, 1999, 2048])
def test_no_nan_next_to_the_factors_of_products(dtype, columns, monkeypatch):
    """A CPU's matrix unit may read past a row's end and multiply by 0, and 0 · NaN is NaN."""
    monkeypatch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: 4)
    student, teacher = linear_problems.make(10, columns, 24, 37, dtype)
    temperature = torch.full((10,), 2.0)
    needs = (True, True, True)
    with Products() as products:
        linear_pieces.total_and_gradients(*student, *teacher, temperature, None, None, needs)
    assert products.seen == 3 * 4  # of every piece: two sides, two gradients


def test_no_nan_next_to_the_factors_of_attention():
    query, key, gradient = attention_problems.make(3, 2, 37, 19, torch.bfloat16)
    mask = attention_problems.padded([37, 7, 0], 37)
    with Products() as products:
        attention_problems.evaluate(pieces, query, key, gradient, mask)
    assert products.seen
