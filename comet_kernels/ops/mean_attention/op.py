"""`mean_attention` as a torch op: schema, checks, one implementation per device, autograd."""

import math

import torch

from comet_kernels.checks import (
    expect,
    expect_float32,
    expect_floating,
    expect_mask,
    expect_same_device,
    expect_shape,
    refuse_forward_mode,
)
from comet_kernels.ops import launch
from comet_kernels.ops.mean_attention import pieces

LONGEST = 8192
WIDEST_HEAD = 256


@torch.library.custom_op("comet::mean_attention", mutates_args=())
def _forward(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map, and for the backward the row statistics [B, H, S] on GPUs or nothing, [B, H, 0], elsewhere."""
    _check(query, key, mask)
    return pieces.forward(query, key, mask, scale), _no_statistics(query)


@_forward.register_kernel("cuda")
def _forward_cuda(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from comet_kernels.ops.mean_attention import gpu

    _check(query, key, mask)
    return gpu.forward(query, key, mask, scale)


@_forward.register_fake
def _forward_fake(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, sequence, _ = query.shape
    attention = query.new_empty(batch, sequence, sequence, dtype=torch.float32)
    if query.device.type != "cuda":
        return attention, _no_statistics(query)
    return attention, query.new_empty(batch, heads, sequence, dtype=torch.float32)


def _no_statistics(query: torch.Tensor) -> torch.Tensor:
    return query.new_empty(*query.shape[:2], 0, dtype=torch.float32)


@torch.library.custom_op("comet::mean_attention_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    statistics: torch.Tensor,
    scale: float,
    query_needs: bool,
    key_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dQ and dK; an empty tensor for the one that is not needed."""
    _check_backward(gradient, query, key, mask)
    needs = (query_needs, key_needs)
    found = pieces.backward(gradient, query, key, mask, scale, needs)
    return _present(found, query)


@_backward.register_kernel("cuda")
def _backward_cuda(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    statistics: torch.Tensor,
    scale: float,
    query_needs: bool,
    key_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from comet_kernels.ops.mean_attention import gpu

    _check_backward(gradient, query, key, mask)
    expect_float32(statistics=statistics)
    expect_shape("statistics", statistics, tuple(query.shape[:3]), "[B, H, S] of query")
    expect_same_device("statistics", statistics, query, "query")
    needs = (query_needs, key_needs)
    statistics = statistics.contiguous()
    found = gpu.backward(gradient, query, key, mask, statistics, scale, needs)
    return _present(found, query)


@_backward.register_fake
def _backward_fake(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    statistics: torch.Tensor,
    scale: float,
    query_needs: bool,
    key_needs: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _present(
        (
            torch.empty_like(query) if query_needs else None,
            torch.empty_like(key) if key_needs else None,
        ),
        query,
    )


def _present(
    gradients: tuple[torch.Tensor | None, torch.Tensor | None], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """An op returns tensors only: an empty one stands for None."""
    first, second = (like.new_empty(0) if g is None else g for g in gradients)
    return first, second


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, mask, ctx.scale = inputs
    ctx.save_for_backward(query, key, mask, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad[:2]
    found = _backward(gradient, *ctx.saved_tensors, ctx.scale, *needs)
    return *(g if needed else None for g, needed in zip(found, needs, strict=True)), None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def _check(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Require two tensors of one shape that the kernels know.

    Raises:
        ValueError: names the argument.
        NotImplementedError: one of them carries a forward-mode tangent.
    """
    refuse_forward_mode("mean_attention", query, key)
    expect(query.dim() == 4, "query", f"{query.dim()} dimensions", "4: [B, H, S, D]")
    expect_shape("key", key, tuple(query.shape), "[B, H, S, D] of query")
    expect_floating("query", query)
    expect(key.dtype == query.dtype, "key", key.dtype, f"the dtype of query, {query.dtype}")
    expect_same_device("key", key, query, "query")
    batch, _, sequence, head_size = query.shape
    # Numbers go in unformatted: a size in a string would be a constant to torch.compile, and each size a compilation.
    expect(1 <= sequence <= LONGEST, "query", sequence, f"S from 1 to {LONGEST}")
    expect(1 <= head_size <= WIDEST_HEAD, "query", head_size, f"D from 1 to {WIDEST_HEAD}")
    if mask is not None:
        expect_mask(mask, (batch, sequence), query, "[B, S] of query", "query")


def _check_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None
) -> None:
    _check(query, key, mask)
    expect_float32(gradient=gradient)
    batch, _, sequence, _ = query.shape
    expect_shape("gradient", gradient, (batch, sequence, sequence), "[B, S, S] of query")
    expect_same_device("gradient", gradient, query, "query")


def mean_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention probabilities averaged over heads, without ever holding one map per head.

        A[b, i, j] = (1/H) Σ_h softmax_j( query[b, h, i] · key[b, h, j] · scale )

    Memory beyond inputs and output is O(B·H·S) on the GPU and one piece of a few MiB elsewhere. Differentiable once,
    with respect to query and key. Inside autocast, float32 inputs are taken in autocast's dtype, as by
    `scaled_dot_product_attention`. Float32 products are true float32 unless
    `torch.set_float32_matmul_precision` or `torch.backends.cuda.matmul` allows TF32.

    Args:
        query: [B, H, S, D], S ≤ 8192, D ≤ 256, float32, bfloat16 or float16, any strides (no copy is made of the
            transposed view that an attention layer holds).
        key: [B, H, S, D], the dtype of query, any strides.
        mask: [B, S] bool, true on real tokens: the softmax runs over real keys, rows and columns of padding are 0, and
            what padding holds does not matter. None: every token is real.
        scale: factor on the dot products; D ** -0.5 by default.

    Returns:
        [B, S, S] float32.

    Raises:
        ValueError: a wrong shape, dtype or device; the message names the argument.
    """
    _check(query, key, mask)
    autocast = launch.autocast_dtype(query.device)
    if query.dtype == torch.float32 and autocast is not None:
        query, key = query.to(autocast), key.to(autocast)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    elif not (isinstance(scale, (int, float)) and -math.inf < scale < math.inf):
        expect(False, "scale", repr(scale), "a finite number or None")
    attention: torch.Tensor = _forward(query, key, mask, float(scale))[0]
    return attention
