"""The gradient of head-averaged attention probabilities, in Triton; the formulas stand in `kernels.py`.

`delta_kernel` sums each row once, then `query_gradient_kernel` and `key_gradient_kernel` each recompute P from lse.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch
from comet_kernels.ops.mean_attention.kernels import (
    FORWARD,
    LOG2_E,
    bytes_of,
    constants_for,
    load_tile,
    place,
    products,
    real_positions,
    shape_class,
    tile_offsets,
    tile_step,
)

# By (architecture, shape class), as in `kernels.py`.
BACKWARD: launch.Table = {
    ("default", "half-64"): {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    ("default", "half-256"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    ("default", "tf32-64"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    ("default", "tf32-256"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 1},
    ("default", "ieee-64"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    ("default", "ieee-256"): {"BLOCK_Q": 16, "BLOCK_K": 32, "num_warps": 8, "num_stages": 1},
    ("gfx", "ieee-256"): {"BLOCK_Q": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
}


@triton.jit
def store_tile(p_tile, b_rows, m_s, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] of one head, in the dtype that lies there."""
    m_rows = m_s[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    tl.store(p_tile, b_rows.to(p_tile.dtype.element_ty), mask=m_rows)


@triton.jit
def delta_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S]
    gradient,  # float32 [B, S, S], any strides: dA
    delta,  # float32 [B, H, S], out
    heads,
    sequence,
    scale,  # times log2 e
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_gb,
    stride_gq,
    stride_gk,
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, head, query tile): Δ_i = Σ_j P_ij dA_ij / H."""
    sample, head, o_head, q_start = place(sequence, heads, BLOCK_Q)
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh + q_start * stride_qs
    p_k = key + sample * stride_kb + head * stride_kh
    o_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    p_g = gradient + sample * stride_gb + q_start * stride_gq
    o_pair = tile_offsets(stride_gq, stride_gk, BLOCK_Q, BLOCK_K, WIDE)
    b_q = load_tile(
        p_q + tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE), m_q, D, BLOCK_D
    )
    b_lse = tl.load(lse + o_head * sequence + o_q, mask=m_q, other=float("inf"))

    b_delta = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, sequence, BLOCK_K):
        m_k = real_positions(mask, sample, start, sequence, BLOCK_K, HAS_MASK)
        b_k = load_tile(p_k + o_tile, m_k, D, BLOCK_D)
        m_pair = m_q[:, None] & m_k[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_pair, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_s = tl.where(m_k[None, :], b_s, -float("inf"))
        b_delta += tl.sum(tl.exp2(b_s - b_lse[:, None]) * b_g, 1)
        p_k += tile_step(stride_ks, BLOCK_K)
        p_g += tile_step(stride_gk, BLOCK_K)

    tl.store(delta + o_head * sequence + o_q, b_delta / heads, mask=o_q < sequence)


@triton.jit
def query_gradient_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S]
    gradient,  # float32 [B, S, S], any strides: dA
    delta,  # float32 [B, H, S]
    query_gradient,  # [B, H, S, D], any strides, out
    heads,
    sequence,
    scale,  # times log2 e
    gradient_scale,  # scale alone
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_gb,
    stride_gq,
    stride_gk,
    stride_ob,
    stride_oh,
    stride_os,
    stride_od,
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr,
    GRADIENT_DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, head, query tile): dQ = scale · Σ over key tiles of dS K."""
    sample, head, o_head, q_start = place(sequence, heads, BLOCK_Q)
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh + q_start * stride_qs
    p_k = key + sample * stride_kb + head * stride_kh
    o_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    p_g = gradient + sample * stride_gb + q_start * stride_gq
    o_pair = tile_offsets(stride_gq, stride_gk, BLOCK_Q, BLOCK_K, WIDE)
    b_q = load_tile(
        p_q + tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE), m_q, D, BLOCK_D
    )
    b_lse = tl.load(lse + o_head * sequence + o_q, mask=m_q, other=float("inf"))
    b_delta = tl.load(delta + o_head * sequence + o_q, mask=m_q, other=0.0)

    b_dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, sequence, BLOCK_K):
        m_k = real_positions(mask, sample, start, sequence, BLOCK_K, HAS_MASK)
        b_k = load_tile(p_k + o_tile, m_k, D, BLOCK_D)
        m_pair = m_q[:, None] & m_k[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_pair, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_s = tl.where(m_k[None, :], b_s, -float("inf"))
        b_ds = tl.exp2(b_s - b_lse[:, None]) * (b_g / heads - b_delta[:, None])
        b_dq += tl.dot(
            b_ds.to(GRADIENT_DTYPE), b_k.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION
        )
        p_k += tile_step(stride_ks, BLOCK_K)
        p_g += tile_step(stride_gk, BLOCK_K)

    p_o = query_gradient + sample * stride_ob + head * stride_oh + q_start * stride_os
    o_out = tile_offsets(stride_os, stride_od, BLOCK_Q, BLOCK_D, WIDE)
    store_tile(p_o + o_out, b_dq * gradient_scale, o_q < sequence, D, BLOCK_D)


@triton.jit
def key_gradient_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S]
    gradient,  # float32 [B, S, S], any strides: dA
    delta,  # float32 [B, H, S]
    key_gradient,  # [B, H, S, D], any strides, out
    heads,
    sequence,
    scale,  # times log2 e
    gradient_scale,  # scale alone
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_gb,
    stride_gq,
    stride_gk,
    stride_ob,
    stride_oh,
    stride_os,
    stride_od,
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr,
    GRADIENT_DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, head, key tile): dK = scale · Σ over query tiles of dSᵀ Q, on transposed tiles throughout."""
    sample, head, o_head, k_start = place(sequence, heads, BLOCK_K)
    o_k = k_start + tl.arange(0, BLOCK_K)
    m_k = real_positions(mask, sample, k_start, sequence, BLOCK_K, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh
    o_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    p_k = key + sample * stride_kb + head * stride_kh + k_start * stride_ks
    p_g = gradient + sample * stride_gb + k_start * stride_gk
    o_pair = tile_offsets(stride_gk, stride_gq, BLOCK_K, BLOCK_Q, WIDE)
    b_k = load_tile(
        p_k + tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE), m_k, D, BLOCK_D
    )

    b_dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, sequence, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = real_positions(mask, sample, start, sequence, BLOCK_Q, HAS_MASK)
        b_q = load_tile(p_q + o_tile, m_q, D, BLOCK_D)
        b_lse = tl.load(lse + o_head * sequence + o_q, mask=m_q, other=float("inf"))
        b_delta = tl.load(delta + o_head * sequence + o_q, mask=m_q, other=0.0)
        m_pair = m_k[:, None] & m_q[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_pair, other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale
        b_ds = tl.exp2(b_s - b_lse[None, :]) * (b_g / heads - b_delta[None, :])
        b_dk += tl.dot(
            b_ds.to(GRADIENT_DTYPE), b_q.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION
        )
        p_q += tile_step(stride_qs, BLOCK_Q)
        p_g += tile_step(stride_gq, BLOCK_Q)
    # Scores of a padding key are 0, not −∞, here; its row of dSᵀ is not part of the result.
    b_dk = tl.where(m_k[:, None], b_dk, 0.0)

    p_o = key_gradient + sample * stride_ob + head * stride_oh + k_start * stride_os
    o_out = tile_offsets(stride_os, stride_od, BLOCK_K, BLOCK_D, WIDE)
    store_tile(p_o + o_out, b_dk * gradient_scale, o_k < sequence, D, BLOCK_D)


def backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    lse: torch.Tensor,
    scale: float,
    needs: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dQ and dK in the inputs' dtype and layout, each only if needed. gradient: float32 [B, S, S], any strides."""
    batch, heads, sequence, head_size = query.shape
    query_gradient = torch.empty_like(query) if needs[0] else None
    key_gradient = torch.empty_like(key) if needs[1] else None
    if batch * heads == 0:
        return query_gradient, key_gradient
    delta = torch.empty_like(lse)
    mask_bytes = bytes_of(mask, otherwise=lse)
    strides = (*query.stride(), *key.stride(), *gradient.stride())
    inputs = (query, key, mask_bytes, lse, gradient, delta)
    kind = shape_class(head_size, products(query))

    def grid(block: str) -> Any:
        return lambda o: (batch * heads * triton.cdiv(sequence, o[block]),)

    sizes = (heads, sequence, scale * LOG2_E)
    inner = (*query.stride()[2:], *key.stride()[2:], *gradient.stride()[1:])
    fixed = constants_for(query, mask, inner, backward=False)
    launch.launch(
        delta_kernel,
        grid("BLOCK_Q"),
        (*inputs, *sizes, *strides),
        fixed,
        FORWARD,
        kind,
        query.device,
    )
    fixed = constants_for(query, mask, inner, backward=True)
    for kernel, block, out in (
        (query_gradient_kernel, "BLOCK_Q", query_gradient),
        (key_gradient_kernel, "BLOCK_K", key_gradient),
    ):
        if out is not None:
            arguments = (*inputs, out, *sizes, scale, *strides, *out.stride())
            launch.launch(kernel, grid(block), arguments, fixed, BACKWARD, kind, query.device)
    return query_gradient, key_gradient
