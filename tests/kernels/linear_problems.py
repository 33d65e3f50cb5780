"""Hidden states and heads for tests of `linear_softened_kl`, and how its results are judged."""

import torch
from accuracy import assert_accurate, relative_rms

from comet_kernels.ops.softened_kl import linear_pieces, reference

NAMES = ("loss", "hidden", "weight", "bias")


def make(n, v, student_size, teacher_size, dtype=torch.float32, device="cpu", bias=True):
    """[hidden, weight, bias] of the student and of the teacher."""
    return [
        [
            torch.randn(n, size, device=device).to(dtype),
            (torch.randn(v, size, device=device) * 2 * size**-0.5).to(dtype),
            torch.randn(v, device=device).to(dtype) if bias else None,
        ]
        for size in (student_size, teacher_size)
    ]


def run(function, student, teacher, temperature=2.0, mask=None, incoming=1.0, needs=(1, 1, 1)):
    """Loss and the three gradients, None where there is none."""
    student = [
        None if t is None else t.detach().requires_grad_(bool(needed))
        for t, needed in zip(student, needs, strict=True)
    ]
    loss = function(*student, *teacher, temperature, mask)
    if loss.requires_grad:
        (loss * incoming).backward()
    return [loss.detach(), *(None if t is None else t.grad for t in student)]


def double(side):
    return [None if t is None else t.double() for t in side]


def judge(found, student, teacher, *arguments, slack=2.0, **options):
    """No worse than plain torch; what 16-bit products do to the logits is theirs, the rest has a small error."""
    oracle = run(
        reference.linear_softened_kl, double(student), double(teacher), *arguments, **options
    )
    plain = run(reference.linear_softened_kl, student, teacher, *arguments, **options)
    dtype = student[0].dtype
    product = linear_pieces.dtype_of_products(*student[:2], None)
    near = oracle
    if product != torch.float32:
        near = of_rounded_logits(product, student, teacher, *arguments, **options)
    for what, actual, truth, rounded, simple in zip(NAMES, found, oracle, near, plain, strict=True):
        assert (actual is None) == (truth is None), what
        if actual is not None:
            assert actual.dtype == simple.dtype, what
            assert_accurate(actual, rounded, dtype=dtype, what=what)
            assert relative_rms(actual, truth) <= slack * relative_rms(simple, truth) + 1e-6, what


def of_rounded_logits(dtype, student, teacher, *arguments, **options):
    """The oracle of products that leave their library in a 16-bit dtype: all is exact but the logits' rounding."""

    def rounded(hidden, weight, bias):
        exact = hidden @ weight.t()
        exact = exact + (exact.detach().to(dtype).double() - exact.detach())
        return exact if bias is None else exact + bias

    def function(*tensors):
        sides = rounded(*tensors[:3]), rounded(*tensors[3:6])
        return reference.softened_kl(*sides, *tensors[6:])

    return run(function, double(student), double(teacher), *arguments, **options)
