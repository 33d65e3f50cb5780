"""Rows of keys that fit in registers: each score is computed once forward and once backward.

A row of up to KEYS keys lies in the registers of one program, so forward needs no second pass over scores to know the
softmax's sum, and backward sums Δ and uses it on the spot:

    forward     1 product,  1 exponential a score   (`kernels.py`: 2 and 2)
    backward    3 products, 1 exponential a score   (`gradient_kernels.py`: 5 and 3)

The formulas stand in `kernels.py`. KEYS is the power of two above S, from a few, and not S: no length compiles anew.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from comet_kernels.ops.mean_attention.tiles import (
    exponents_from,
    load_tile,
    masked_scores,
    real_positions,
    store_statistics,
    store_tile,
    tile_offsets,
    tile_step,
)


@triton.jit
def row_map_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S], out: log2 of the sum of 2^scores
    attention,  # float32 [B, S, S], out
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
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """One (sample, query tile): head after head, the softmax of whole rows, and its sum over heads."""
    tiles = tl.cdiv(sequence, BLOCK_Q)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    q_start = ((tl.program_id(0) % tiles) * BLOCK_Q).to(tl.int64)
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    m_k = real_positions(mask, sample, 0, sequence, KEYS, HAS_MASK)
    p_q = query + sample * stride_qb + q_start * stride_qs
    p_k = key + sample * stride_kb
    p_lse = lse + sample * heads * sequence + o_q
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_k_tile = tile_offsets(stride_ks, stride_kd, KEYS, BLOCK_D, WIDE)

    b_a = tl.zeros([BLOCK_Q, KEYS], tl.float32)
    for _ in range(heads):
        b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
        b_k = load_tile(p_k + o_k_tile, m_k, D, BLOCK_D)
        b_s = masked_scores(b_q, b_k, m_k, scale, PRECISION)
        b_max = tl.max(b_s, 1)
        b_p = tl.exp2(b_s - exponents_from(b_max)[:, None])
        b_sum = tl.sum(b_p, 1)
        b_a += b_p * tl.where(m_q & (b_sum != 0), 1 / b_sum, 0.0)[:, None]
        store_statistics(p_lse, b_max, b_sum, m_q, o_q < sequence)
        p_q += stride_qh
        p_k += stride_kh
        p_lse += sequence

    p_a = attention + (sample * sequence + q_start) * sequence
    o_pair = tile_offsets(sequence, 1, BLOCK_Q, KEYS, False)
    m_pair = (o_q < sequence)[:, None] & (tl.arange(0, KEYS) < sequence)[None, :]
    tl.store(p_a + o_pair, b_a * (1 / heads), mask=m_pair)


@triton.jit
def row_gradient_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S]
    gradient,  # float32 [B, S, S], any strides: dA
    query_gradient,  # [B, H, S, D], any strides, out; or None
    key_gradient,  # [B, H, S, D], any strides, out; or None
    heads,
    sequence,
    scale,  # times log2 e
    gradient_scale,  # scale / H
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
    stride_dqb,
    stride_dqh,
    stride_dqs,
    stride_dqd,
    stride_dkb,
    stride_dkh,
    stride_dks,
    stride_dkd,
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr,
    GRADIENT_DTYPE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """One (sample, head): dQ of each query tile, and dK summed in registers over all of them."""
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    m_k = real_positions(mask, sample, 0, sequence, KEYS, HAS_MASK)
    o_k = tl.arange(0, KEYS)
    p_q = query + sample * stride_qb + head * stride_qh
    p_k = key + sample * stride_kb + head * stride_kh
    p_g = gradient + sample * stride_gb
    p_lse = lse + (sample * heads + head) * sequence
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_pair = tile_offsets(stride_gq, stride_gk, BLOCK_Q, KEYS, WIDE)
    b_k = load_tile(p_k + tile_offsets(stride_ks, stride_kd, KEYS, BLOCK_D, WIDE), m_k, D, BLOCK_D)
    if query_gradient is not None:
        p_dq = query_gradient + sample * stride_dqb + head * stride_dqh
        o_dq_tile = tile_offsets(stride_dqs, stride_dqd, BLOCK_Q, BLOCK_D, WIDE)
    if key_gradient is not None:
        b_dk = tl.zeros([KEYS, BLOCK_D], tl.float32)

    for start in range(0, sequence, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = real_positions(mask, sample, start, sequence, BLOCK_Q, HAS_MASK)
        m_exists = (o_q < sequence)[:, None] & (o_k < sequence)[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_exists, other=0.0)
        b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
        b_lse = tl.load(p_lse + o_q, mask=m_q, other=float("inf"))
        b_s = masked_scores(b_q, b_k, m_k, scale, PRECISION)
        b_p = tl.exp2(b_s - b_lse[:, None])
        b_g = tl.where(m_q[:, None] & m_k[None, :], b_g, 0.0)  # padding may hold NaN
        b_delta = tl.sum(b_p * b_g, 1)
        b_ds = (b_p * (b_g - b_delta[:, None])).to(GRADIENT_DTYPE)
        if query_gradient is not None:
            b_dq = tl.dot(b_ds, b_k.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION)
            store_tile(p_dq + o_dq_tile, b_dq * gradient_scale, o_q < sequence, D, BLOCK_D)
            p_dq += tile_step(stride_dqs, BLOCK_Q)
        if key_gradient is not None:
            b_dk += tl.dot(
                tl.trans(b_ds), b_q.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION
            )
        p_q += tile_step(stride_qs, BLOCK_Q)
        p_g += tile_step(stride_gq, BLOCK_Q)

    if key_gradient is not None:
        p_dk = key_gradient + sample * stride_dkb + head * stride_dkh
        o_dk_tile = tile_offsets(stride_dks, stride_dkd, KEYS, BLOCK_D, WIDE)
        store_tile(p_dk + o_dk_tile, b_dk * gradient_scale, o_k < sequence, D, BLOCK_D)
