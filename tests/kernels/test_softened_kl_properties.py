"""`softened_kl` and `linear_softened_kl` on whatever shapes, layouts, masks and temperatures Hypothesis thinks of."""

import linear_problems
import pytest
import test_softened_kl as tests
import torch
from accuracy import RELATIVE_RMS, relative_rms
from hypothesis import given, settings
from hypothesis import strategies as st

from comet_kernels.ops.softened_kl import linear_pieces, linear_softened_kl, reference

EPSILON = torch.finfo(torch.float32).eps
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
examined = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def rows_of(draw, n, dtype, device):
    """Temperature and mask of n rows; a row left out has a temperature that could not be."""
    temperature = draw(st.floats(0.25, 8))
    if draw(st.booleans()):
        temperature = temperature * (1 + torch.rand(n, device=device))
    if not draw(st.booleans()):
        return temperature, None
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), device=device)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.masked_fill(~mask, float("nan"))
    return temperature, mask


def logits(draw, n, v, dtype, device):
    """[n, v] somewhere inside of a larger tensor."""
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    whole = torch.randn(n, before + v + after, device=device) * draw(st.sampled_from([0.1, 3, 30]))
    return whole.to(dtype)[:, before : before + v]


def judge(found, oracle, plain, degrees, dtype):
    """Where student and teacher nearly agree, rounding is all that is left: as small as plain torch's will do there."""
    loss, truth = found[0].double(), oracle[0]
    assert abs(loss - truth) <= 1e-5 * truth + 8 * EPSILON * degrees**2
    for actual, expected, simple in zip(found[1:], oracle[1:], plain[1:], strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            allowed = max(RELATIVE_RMS[dtype], 2 * relative_rms(simple, expected))
            assert relative_rms(actual, expected) <= allowed


def hottest(temperature):
    if not isinstance(temperature, torch.Tensor):
        return temperature
    return temperature.nan_to_num(0).max().item()


@pytest.mark.parametrize("name", tests.IMPLEMENTATIONS)
@examined
@given(data=st.data())
def test_softened_kl(name, data):
    device = tests.home(name)
    n, v = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5000))
    student, teacher = (logits(data.draw, n, v, data.draw(DTYPES), device) for _ in range(2))
    temperature, mask = data.draw(rows_of(n, student.dtype, device))
    given_temperature = temperature
    if mask is not None and not isinstance(temperature, torch.Tensor):
        given_temperature = torch.full((n,), temperature, device=device)
    found = tests.evaluate(name, student, teacher, given_temperature, mask)
    sides = student.double(), teacher.double()
    oracle = tests.run(reference.softened_kl, *sides, temperature, mask)
    plain = tests.run(reference.softened_kl, student, teacher, temperature, mask)
    judge(found, oracle, plain, hottest(temperature), student.dtype)


@pytest.mark.parametrize("device", tests.DEVICES)
@examined
@given(data=st.data())
def test_linear_softened_kl(device, data):
    n, v = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 700))
    sizes = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    dtype, bias = data.draw(DTYPES), data.draw(st.booleans())
    student, teacher = linear_problems.make(n, v, *sizes, dtype, device, bias)
    if data.draw(st.booleans()):
        student[0] = student[0].t().contiguous().t()
        teacher[1] = torch.cat([teacher[1]] * 2, 1)[:, : sizes[1]]
    temperature, mask = data.draw(rows_of(n, dtype, device))
    needs = (data.draw(st.booleans()), data.draw(st.booleans()), bias and data.draw(st.booleans()))
    rows = data.draw(st.integers(1, 9))
    arguments = (student, teacher, temperature, mask, 0.7, needs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: rows)
        found = linear_problems.run(linear_softened_kl, *arguments)
    product_dtype = linear_pieces.dtype_of_products(*student[:2], None)
    oracle = linear_problems.of_rounded_logits(product_dtype, *arguments)
    plain = linear_problems.run(reference.linear_softened_kl, *arguments)
    judge(found, oracle, plain, hottest(temperature), dtype)
