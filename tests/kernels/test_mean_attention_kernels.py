"""The Triton kernels of `mean_attention`, compiled on a GPU and interpreted elsewhere, on every way through them."""

import contextlib
import itertools

import pytest
import torch
from accounting import Allocations
from attention_problems import evaluate, judge, make, padded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from comet_kernels.ops import launch
from comet_kernels.ops.mean_attention import gpu, options

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
WAYS = ["rows", "pairs", "heads"]


@contextlib.contextmanager
def through(way):
    """Rows of keys in registers where they fit, or the kernels for any length, on two heads at a time or on one."""
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_GPU:  # the tables' richest rows
            patch.setattr(launch, "architecture", lambda device: "sm_90")
        if way != "rows":
            patch.setattr(options, "row_class", lambda *_: None)
        if (
            way == "heads" or not HAS_GPU
        ):  # two heads overfill a GPU's registers where they are not shipped
            patch.setattr(options, "in_pairs", lambda *_: way == "pairs")
        yield


@pytest.fixture(params=WAYS)
def way(request):
    with through(request.param):
        yield request.param


LAYOUTS = [
    lambda t: t,
    lambda t: t.contiguous(),
    lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    lambda t: torch.cat([t, t], 2)[:, :, : t.shape[2]],
]
GRADIENT_LAYOUTS = [
    lambda t: t,
    lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    lambda t: t[:, :1].expand_as(t),
    lambda t: torch.stack([t, t], -1)[..., 0],
]


@st.composite
def masks(draw, batch, sequence):
    kind = draw(st.sampled_from(["none", "end", "anywhere", "one sample is padding"]))
    if kind == "none":
        return None
    if kind == "end":
        lengths = st.lists(st.integers(0, sequence), min_size=batch, max_size=batch)
        return padded(draw(lengths), sequence, DEVICE)
    mask = torch.rand(batch, sequence, device=DEVICE) < 0.7
    mask[-1] &= kind == "anywhere"
    return mask


@st.composite
def problems(draw):
    """Query, key, dA and mask in any layout."""
    torch.manual_seed(draw(st.integers(0, 99)))
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sequence = draw(st.sampled_from([1, 2, 17, 64, 65, 127, 129]))
    head_size = draw(st.sampled_from([1, 8, 24, 80]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    query, key, gradient = make(batch, heads, sequence, head_size, dtype, DEVICE)
    layouts = draw(st.tuples(*map(st.sampled_from, (LAYOUTS, LAYOUTS, GRADIENT_LAYOUTS))))
    inputs = (of(tensor) for of, tensor in zip(layouts, (query, key, gradient), strict=True))
    return *inputs, draw(masks(batch, sequence))


@pytest.mark.parametrize("way", WAYS)
@given(
    problems(),
    st.sampled_from([0.0, -0.4, 0.3, 1.0]),
    st.sampled_from([(True, True), (True, False), (False, True)]),
)
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a failure is small enough as it is
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_kernels_agree_with_the_definition(bfloat16_products, way, problem, scale, needs):
    query, key, gradient, mask = problem
    scale *= query.shape[-1] ** -0.5
    with through(way):
        found = evaluate(gpu, query, key, gradient, mask, scale, needs)
    assert [g is not None for g in found[1:]] == list(needs)
    assert all(g.dtype == query.dtype for g in found[1:] if g is not None)
    # The interpreter cuts to bfloat16 where GPUs round to it, twice on the way to a gradient.
    slack = 4 if query.dtype == torch.bfloat16 and not HAS_GPU else 2
    judge(found, query, key, gradient, mask, slack, scale=scale)


@pytest.mark.parametrize(
    ("shape", "lengths", "dtype"),
    [
        ((2, 3, 17, 24), [17, 5], torch.float32),
        ((3, 2, 127, 16), [127, 0, 1], torch.float32),
        ((1, 2, 33, 200), None, torch.float32),
        ((1, 2, 129, 80), None, torch.float16),
        ((2, 2, 250, 24), [250, 100], torch.bfloat16),
    ],
)
def test_odd_shapes(way, shape, lengths, dtype, bfloat16_products):
    query, key, gradient = make(*shape, dtype, DEVICE)
    mask = None if lengths is None else padded(lengths, shape[2], DEVICE)
    found = evaluate(gpu, query, key, gradient, mask, shape[-1] ** -0.5)
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype]
    judge(found, query, key, gradient, mask)


@pytest.mark.parametrize(
    ("sequence", "dtype", "ran"),
    [
        (1, torch.float32, ["row_map", "row_gradient"]),
        (128, torch.bfloat16, ["row_map", "row_gradient"]),
        (129, torch.float32, ["statistics", "map", "delta", "query_gradient", "key_gradient"]),
        (256, torch.float16, ["row_map", "row_gradient"]),
        (257, torch.float16, ["statistics", "map", "delta", "query_gradient", "key_gradient"]),
    ],
)
def test_rows_that_fit_in_registers_are_computed_once(monkeypatch, sequence, dtype, ran):
    seen = []
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(launch, "launch", lambda kernel, *_: seen.append(kernel.fn.__name__))
    query, key, gradient = make(1, 1, sequence, 64, dtype)
    evaluate(gpu, query, key, gradient)
    assert seen == [f"{name}_kernel" for name in ran]


def test_what_padding_holds_does_not_matter(way):
    query, key, gradient = make(2, 2, 35, 16, device=DEVICE)
    mask = padded([20, 0], 35, DEVICE)
    # Real scores far below 0, the score of zeroed padding: 2^(0 − lse) overflows unless it is masked.
    query, key = query * 0 + 20, key * 0 - 20
    clean = evaluate(gpu, query, key, gradient, mask, 1.0)
    attention, *gradients = clean
    assert all(t.isfinite().all() for t in clean)
    assert attention[0, :20, :20].sub(1 / 20).abs().max() < 1e-4  # lse is near -9000 in float32
    assert attention[0, 20:].eq(0).all()
    assert all(t[1].eq(0).all() for t in (attention, *gradients))
    hole, pair = ~mask[:, None, :, None], mask[:, :, None] & mask[:, None]
    for bad in (float("nan"), float("inf"), 1e30):
        dirty = (query.masked_fill(hole, bad), key.masked_fill(hole, bad))
        found = evaluate(gpu, *dirty, gradient.masked_fill(~pair, bad), mask, 1.0)
        assert all(map(torch.equal, found, clean))


def test_nan_in_gives_nan_out(way):
    query, key, gradient = make(1, 2, 9, 16, device=DEVICE)
    query[0, 1, 3, 5] = float("nan")
    attention, query_gradient, _ = evaluate(gpu, query, key, gradient)
    assert attention[0, 3].isnan().all()
    assert query_gradient[0, 1, 3].isnan().all()
    assert attention[0, 4].isfinite().all()


def test_one_key_has_no_gradient(way):
    query, key, gradient = make(2, 3, 40, 16, device=DEVICE)
    found = evaluate(gpu, query, key, gradient, padded([1, 1], 40, DEVICE))
    assert found[0][:, 0, 0].eq(1).all()
    assert all(g.eq(0).all() for g in found[1:])


def test_any_strides(way):
    query, key, gradient = make(2, 2, 21, 16, device=DEVICE)
    wanted = evaluate(gpu, query, key, gradient)
    turned = GRADIENT_LAYOUTS[1](gradient)
    for of_query, of_key in itertools.pairwise([*LAYOUTS, LAYOUTS[0]]):
        found = evaluate(gpu, of_query(query), of_key(key), turned)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_wide_strides_take_64_bit_offsets(way, monkeypatch):
    query, key, gradient = make(1, 2, 40, 16, device=DEVICE)
    for strides, wide in (((1 << 22, 1), True), ((1 << 21, 1), False)):
        assert gpu.tile_constants(query, None, strides)["WIDE"] is wide
    fixed = options.constants
    wanted = evaluate(gpu, query, key, gradient)
    monkeypatch.setattr(options, "constants", lambda *a, **o: fixed(*a, **{**o, "wide": True}))
    found = evaluate(gpu, query, key, gradient)
    if HAS_GPU:  # two compilations need not agree in their last bits
        judge(found, query, key, gradient)
    else:
        assert all(map(torch.equal, found, wanted))


def test_same_bits_twice_and_alone(way):
    query, key, gradient = make(1, 3, 70, 16, device=DEVICE)
    first, second = (evaluate(gpu, query, key, gradient) for _ in range(2))
    assert all(map(torch.equal, first, second))
    for needs in ((True, False), (False, True)):
        some = evaluate(gpu, query, key, gradient, needs=needs)
        for one, other, needed in zip(some[1:], first[1:], needs, strict=True):
            assert torch.equal(one, other) if needed else one is None


def test_kernels_hold_row_statistics_only(way):
    query, key, gradient = make(1, 8, 70, 16, device=DEVICE)
    with Allocations() as seen:
        attention = evaluate(gpu, query, key, gradient)[0]
    statistics = 4 * 8 * 70
    assert seen.peak_bytes <= attention.nbytes + 2 * statistics + 2 * query.nbytes
