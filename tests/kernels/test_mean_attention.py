import itertools

import pytest
import torch
from accounting import Allocations
from accuracy import assert_accurate
from attention_problems import evaluate, judge, make, padded, run

from comet_kernels.ops.mean_attention import mean_attention, pieces, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("shape", "lengths", "dtype"),
    [
        ((2, 1, 1, 24), None, torch.float32),
        ((2, 3, 17, 24), [17, 5], torch.float32),
        ((1, 2, 129, 80), None, torch.float32),
        ((3, 2, 127, 16), [127, 0, 1], torch.float32),
        ((1, 2, 33, 200), None, torch.float32),
        ((2, 2, 127, 24), [100, 127], torch.bfloat16),
        ((1, 3, 129, 80), None, torch.float16),
    ],
)
def test_pieces_agree_with_the_definition(shape, lengths, dtype):
    query, key, gradient = make(*shape, dtype)
    mask = None if lengths is None else padded(lengths, shape[2])
    found = evaluate(pieces, query, key, gradient, mask, shape[-1] ** -0.5)
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype]
    judge(found, query, key, gradient, mask)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1, 8])
def test_16_bit_inputs_are_rounded_no_further(dtype, size):
    """As if they had come in float32; D = 32, whose scale is no power of two, and maps up to sharp ones."""
    query, key, gradient = make(2, 3, 61, 32, dtype)
    query = query * size
    mask = padded([61, 40], 61)
    found = evaluate(pieces, query, key, gradient, mask, scale=32**-0.5)
    exact = evaluate(pieces, query.float(), key.float(), gradient, mask, scale=32**-0.5)
    assert torch.equal(found[0], exact[0])
    assert all(
        torch.equal(low, high.to(dtype)) for low, high in zip(found[1:], exact[1:], strict=True)
    )
    truth = reference.mean_attention(query.double(), key.double(), mask)
    assert_accurate(found[0], truth)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(2, 4, 250, 64), (3, 1, 1, 8), (1, 2, 300, 256), (0, 2, 5, 8), (2, 0, 5, 8)]
)
def test_op_agrees_with_the_definition(device, shape):
    query, key, gradient = make(*shape, device=device)
    if shape[1] == 0:
        assert mean_attention(query, key).eq(0).all()
        return
    judge(run(mean_attention, query, key, gradient), query, key, gradient)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("shape", [(2, 16, 128, 64), (1, 8, 1031, 64), (2, 3, 513, 256)])
def test_larger_shapes_on_a_gpu(shape, dtype):
    query, key, gradient = make(*shape, dtype, "cuda")
    mask = padded([shape[2], shape[2] // 2][: shape[0]], shape[2], "cuda")
    judge(run(mean_attention, query, key, gradient, mask), query, key, gradient, mask)


@pytest.mark.gpu
def test_tf32_only_where_torch_allows_it():
    query, key, _ = make(1, 2, 256, 64, device="cuda")
    exact = mean_attention(query, key)
    torch.set_float32_matmul_precision("high")
    try:
        rounded = mean_attention(query, key)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not torch.equal(exact, rounded)
    assert torch.equal(exact, mean_attention(query, key))


@pytest.mark.parametrize("device", DEVICES)
def test_what_padding_holds_does_not_matter(device):
    query, key, gradient = make(3, 2, 19, 16, device=device)
    mask = padded([19, 7, 0], 19, device)
    clean = run(mean_attention, query, key, gradient, mask)
    for bad in (float("nan"), float("inf"), 1e30):
        hole = ~mask[:, None, :, None]
        pair = mask[:, :, None] & mask[:, None]
        dirty = run(
            mean_attention,
            query.masked_fill(hole, bad),
            key.masked_fill(hole, bad),
            gradient.masked_fill(~pair, bad),
            mask,
        )
        assert all(map(torch.equal, clean, dirty))
    attention, *gradients = clean
    assert attention.masked_fill(mask[:, :, None] & mask[:, None], 0).eq(0).all()
    assert all(g[2].eq(0).all() for g in (attention, *gradients))
    judge(clean, query, key, gradient, mask)


def test_nan_in_gives_nan_out():
    query, key, _ = make(1, 2, 9, 16)
    query[0, 1, 3, 5] = float("nan")
    attention = pieces.forward(query, key, None, 0.25)
    assert attention[0, 3].isnan().all()
    assert attention[0, 4].isfinite().all()


def test_any_strides():
    query, key, gradient = make(2, 2, 21, 16)
    layouts = [
        lambda t: t.contiguous(),
        lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        lambda t: torch.cat([t, t], -1)[..., :16],
        lambda t: torch.cat([t, t], 2)[:, :, :21],
    ]
    wanted = evaluate(pieces, query, key, gradient)
    turned = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    for of_query, of_key in itertools.product(layouts, repeat=2):
        found = evaluate(pieces, of_query(query), of_key(key), turned)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_partial_gradients(device):
    query, key, gradient = make(2, 2, 17, 16, device=device)
    _, dq, dk = run(mean_attention, query, key, gradient)
    for of_query, of_key in ((True, False), (False, True)):
        q, k = (t.detach().requires_grad_(needs) for t, needs in ((query, of_query), (key, of_key)))
        mean_attention(q, k).backward(gradient)
        assert torch.equal(q.grad, dq) if of_query else q.grad is None
        assert torch.equal(k.grad, dk) if of_key else k.grad is None
    q = query.detach().requires_grad_()
    mean_attention(q, q, scale=0.3).backward(gradient)
    oracle = query.double().requires_grad_()
    reference.mean_attention(oracle, oracle, scale=0.3).backward(gradient.double())
    assert_accurate(q.grad, oracle.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_twice(device):
    query, key, gradient = make(2, 4, 129, 32, device=device)
    first, second = (run(mean_attention, query, key, gradient) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    query, key, gradient = make(2, 2, 5, 8, device=device)
    mask = padded([5, 3], 5, device)
    q, k = query.requires_grad_(), key.requires_grad_()
    for arguments in ((q, k, None, 0.5), (q, k, mask, 0.5)):
        torch.library.opcheck(torch.ops.comet.mean_attention.default, arguments)
    _, statistics = torch.ops.comet.mean_attention(query, key, mask, 0.5)
    for needs in ((True, True), (False, True)):
        torch.library.opcheck(
            torch.ops.comet.mean_attention_backward.default,
            (gradient, query.detach(), key.detach(), mask, statistics.detach(), 0.5, *needs),
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(device, dynamic, fresh_compiler):
    compiled = torch.compile(mean_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for sequence in (9, 12):
        query, key, gradient = make(2, 2, sequence, 8, device=device)
        mask = padded([sequence, 4], sequence, device)
        expected = run(mean_attention, query, key, gradient, mask)
        assert all(map(torch.equal, expected, run(compiled, query, key, gradient, mask)))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_takes_its_dtype(device):
    query, key, gradient = make(2, 2, 9, 8, device=device)
    low = run(mean_attention, query.bfloat16(), key.bfloat16(), gradient)
    with torch.autocast(device, torch.bfloat16):
        cast = run(mean_attention, query, key, gradient)
    assert cast[0].dtype == cast[1].dtype == torch.float32
    assert torch.equal(cast[0], low[0])
    assert torch.equal(cast[1], low[1].float())
    # What happens inside the op does not fall under autocast.
    exact = mean_attention(query, key, scale=0.5)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(torch.ops.comet.mean_attention(query, key, None, 0.5)[0], exact)


def test_pieces_never_hold_a_map_per_head():
    batch, heads, sequence = 3, 32, 256
    assert 4 * batch * heads * sequence**2 > 2 * pieces.PIECE_BYTES  # or nothing is shown
    query, key, gradient = make(batch, heads, sequence, 16)
    with Allocations() as seen:
        attention = pieces.forward(query, key, None, 0.25)
    small = query.nbytes // batch
    assert seen.peak_bytes <= attention.nbytes + pieces.PIECE_BYTES + 2 * small
    with Allocations() as seen:
        pieces.backward(gradient, query, key, None, 0.25, (True, True))
    assert seen.peak_bytes <= 2 * query.nbytes + pieces.PIECE_BYTES + 6 * small


@pytest.mark.gpu
def test_memory_on_a_gpu():
    query, key, _ = make(4, 16, 512, 64, device="cuda")
    mean_attention(query, key)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attention = mean_attention(query, key)
    statistics = 4 * 4 * 16 * 512
    assert torch.cuda.max_memory_allocated() - before <= attention.nbytes + 2 * statistics + 4096


QUERY = torch.zeros(2, 2, 5, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUERY[0], QUERY), r"query: got 3 dimensions, expected 4: \[B, H, S, D\]"),
        ((QUERY, QUERY[:, :1]), r"key: got shape \[2, 1, 5, 8\], expected .* = \[2, 2, 5, 8\]"),
        ((QUERY.double(), QUERY.double()), "query: got torch.float64, expected float32"),
        ((QUERY, QUERY.bfloat16()), "key: got torch.bfloat16, expected the dtype of query"),
        ((QUERY, QUERY.to("meta")), "key: got device meta, expected the device of query"),
        ((QUERY[:, :, :0], QUERY[:, :, :0]), "query: got 0, expected S from 1 to 8192"),
        ((torch.zeros(1, 1, 8193, 1),) * 2, "query: got 8193, expected S from"),
        ((torch.zeros(1, 1, 1, 257),) * 2, "query: got 257, expected D from 1 to 256"),
        ((QUERY, QUERY, torch.ones(2, 5)), "mask: got torch.float32, expected torch.bool"),
        ((QUERY, QUERY, torch.ones(2, 4).bool()), r"mask: got shape \[2, 4\], expected \[B, S\]"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        mean_attention(*arguments)


def test_differentiable_once():
    query, key, gradient = make(1, 1, 4, 8)
    query.requires_grad_()
    (slope,) = torch.autograd.grad(mean_attention(query, key), query, gradient, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()
