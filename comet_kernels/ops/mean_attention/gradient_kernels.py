"""The gradient of head-averaged attention probabilities for rows of any length; formulas in `kernels.py`.

`delta_kernel` sums each row once, then `query_gradient_kernel` and `key_gradient_kernel` each recompute P from lse.

All three read dA [B, S, S] once for every head, 4 bytes a score and so more than the keys: a program of PAIR works on
two heads at a time and reads it half as often. Where H is odd the last program computes its head twice and stores it
once.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from comet_kernels.ops.mean_attention.tiles import (
    load_tile,
    masked_scores,
    place,
    real_positions,
    store_tile,
    tile_offsets,
    tile_step,
)


@triton.jit
def score_gradient(b_s, b_g, b_lse, b_delta, m_pair):
    """dS = P ∘ (dA − Δ) from base-2 scores; 0 at padding, whose dA may be NaN and whose P may be infinite."""
    return tl.where(m_pair, tl.exp2(b_s - b_lse) * (b_g - b_delta), 0.0)


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
    PAIR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    num_stages: tl.constexpr,
):
    """One (sample, one or two heads, query tile): Δ_i = Σ_j P_ij dA_ij."""
    sample, group, q_start = place(sequence, tl.cdiv(heads, 2) if PAIR else heads, BLOCK_Q)
    head = group * 2 if PAIR else group
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh + q_start * stride_qs
    p_k = key + sample * stride_kb + head * stride_kh
    p_g = gradient + sample * stride_gb + q_start * stride_gq
    p_lse = lse + (sample * heads + head) * sequence + o_q
    p_delta = delta + (sample * heads + head) * sequence + o_q
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_k_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    o_pair = tile_offsets(stride_gq, stride_gk, BLOCK_Q, BLOCK_K, WIDE)
    b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
    b_lse = tl.load(p_lse, mask=m_q, other=float("inf"))
    b_delta = tl.zeros([BLOCK_Q], tl.float32)
    if PAIR:
        step = tl.minimum(heads - 1 - head, 1)  # to the second head, 0 where there is none
        b_q2 = load_tile(p_q + step * stride_qh + o_q_tile, m_q, D, BLOCK_D)
        b_lse2 = tl.load(p_lse + step * sequence, mask=m_q, other=float("inf"))
        b_delta2 = tl.zeros([BLOCK_Q], tl.float32)

    # Only a loop told its stages prefetches what no product needs, and here that is dA, the most of what is read.
    for start in tl.range(0, sequence, BLOCK_K, num_stages=num_stages):
        o_k = start + tl.arange(0, BLOCK_K)
        m_k = real_positions(mask, sample, start, sequence, BLOCK_K, HAS_MASK)
        m_exists = (o_q < sequence)[:, None] & (o_k < sequence)[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_exists, other=0.0)
        b_g = tl.where(m_q[:, None] & m_k[None, :], b_g, 0.0)
        b_k = load_tile(p_k + o_k_tile, m_k, D, BLOCK_D)
        b_s = masked_scores(b_q, b_k, m_k, scale, PRECISION)
        b_delta += tl.sum(tl.exp2(b_s - b_lse[:, None]) * b_g, 1)
        if PAIR:
            b_k2 = load_tile(p_k + step * stride_kh + o_k_tile, m_k, D, BLOCK_D)
            b_s2 = masked_scores(b_q2, b_k2, m_k, scale, PRECISION)
            b_delta2 += tl.sum(tl.exp2(b_s2 - b_lse2[:, None]) * b_g, 1)
        p_k += tile_step(stride_ks, BLOCK_K)
        p_g += tile_step(stride_gk, BLOCK_K)

    tl.store(p_delta, b_delta, mask=o_q < sequence)
    if PAIR:
        tl.store(p_delta + sequence, b_delta2, mask=o_q < step * sequence)


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
    PAIR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, one or two heads, query tile): dQ = scale/H · Σ over key tiles of dS K."""
    sample, group, q_start = place(sequence, tl.cdiv(heads, 2) if PAIR else heads, BLOCK_Q)
    head = group * 2 if PAIR else group
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh + q_start * stride_qs
    p_k = key + sample * stride_kb + head * stride_kh
    p_g = gradient + sample * stride_gb + q_start * stride_gq
    p_o = query_gradient + sample * stride_ob + head * stride_oh + q_start * stride_os
    o_row = (sample * heads + head) * sequence + o_q
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_k_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    o_pair = tile_offsets(stride_gq, stride_gk, BLOCK_Q, BLOCK_K, WIDE)
    o_out = tile_offsets(stride_os, stride_od, BLOCK_Q, BLOCK_D, WIDE)
    b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
    b_lse = tl.load(lse + o_row, mask=m_q, other=float("inf"))
    b_delta = tl.load(delta + o_row, mask=m_q, other=0.0)
    b_dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if PAIR:
        step = tl.minimum(heads - 1 - head, 1)  # to the second head, 0 where there is none
        b_q2 = load_tile(p_q + step * stride_qh + o_q_tile, m_q, D, BLOCK_D)
        b_lse2 = tl.load(lse + step * sequence + o_row, mask=m_q, other=float("inf"))
        b_delta2 = tl.load(delta + step * sequence + o_row, mask=m_q, other=0.0)
        b_dq2 = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)

    for start in range(0, sequence, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        m_k = real_positions(mask, sample, start, sequence, BLOCK_K, HAS_MASK)
        m_pair = m_q[:, None] & m_k[None, :]
        m_exists = (o_q < sequence)[:, None] & (o_k < sequence)[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_exists, other=0.0)
        b_k = load_tile(p_k + o_k_tile, m_k, D, BLOCK_D)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_ds = score_gradient(b_s, b_g, b_lse[:, None], b_delta[:, None], m_pair)
        b_dq += tl.dot(
            b_ds.to(GRADIENT_DTYPE), b_k.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION
        )
        if PAIR:
            b_k2 = load_tile(p_k + step * stride_kh + o_k_tile, m_k, D, BLOCK_D)
            b_s2 = tl.dot(b_q2, tl.trans(b_k2), input_precision=PRECISION) * scale
            b_ds2 = score_gradient(b_s2, b_g, b_lse2[:, None], b_delta2[:, None], m_pair)
            b_dq2 += tl.dot(
                b_ds2.to(GRADIENT_DTYPE),
                b_k2.to(GRADIENT_DTYPE),
                input_precision=GRADIENT_PRECISION,
            )
        p_k += tile_step(stride_ks, BLOCK_K)
        p_g += tile_step(stride_gk, BLOCK_K)

    store_tile(p_o + o_out, b_dq * gradient_scale, o_q < sequence, D, BLOCK_D)
    if PAIR:
        m_second = o_q < step * sequence
        store_tile(p_o + stride_oh + o_out, b_dq2 * gradient_scale, m_second, D, BLOCK_D)


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
    PAIR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, one or two heads, key tile): dK = scale/H · Σ over query tiles of dSᵀ Q, on transposed tiles."""
    sample, group, k_start = place(sequence, tl.cdiv(heads, 2) if PAIR else heads, BLOCK_K)
    head = group * 2 if PAIR else group
    o_k = k_start + tl.arange(0, BLOCK_K)
    m_k = real_positions(mask, sample, k_start, sequence, BLOCK_K, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh
    p_k = key + sample * stride_kb + head * stride_kh + k_start * stride_ks
    p_g = gradient + sample * stride_gb + k_start * stride_gk
    p_o = key_gradient + sample * stride_ob + head * stride_oh + k_start * stride_os
    o_row = (sample * heads + head) * sequence
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_k_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    o_pair = tile_offsets(stride_gk, stride_gq, BLOCK_K, BLOCK_Q, WIDE)
    o_out = tile_offsets(stride_os, stride_od, BLOCK_K, BLOCK_D, WIDE)
    b_k = load_tile(p_k + o_k_tile, m_k, D, BLOCK_D)
    b_dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    if PAIR:
        step = tl.minimum(heads - 1 - head, 1)  # to the second head, 0 where there is none
        b_k2 = load_tile(p_k + step * stride_kh + o_k_tile, m_k, D, BLOCK_D)
        b_dk2 = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)

    for start in range(0, sequence, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = real_positions(mask, sample, start, sequence, BLOCK_Q, HAS_MASK)
        m_pair = m_k[:, None] & m_q[None, :]
        m_exists = (o_k < sequence)[:, None] & (o_q < sequence)[None, :]
        b_g = tl.load(p_g + o_pair, mask=m_exists, other=0.0)
        b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
        b_lse = tl.load(lse + o_row + o_q, mask=m_q, other=float("inf"))
        b_delta = tl.load(delta + o_row + o_q, mask=m_q, other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale
        b_ds = score_gradient(b_s, b_g, b_lse[None, :], b_delta[None, :], m_pair)
        b_dk += tl.dot(
            b_ds.to(GRADIENT_DTYPE), b_q.to(GRADIENT_DTYPE), input_precision=GRADIENT_PRECISION
        )
        if PAIR:
            b_q2 = load_tile(p_q + step * stride_qh + o_q_tile, m_q, D, BLOCK_D)
            o_row2 = o_row + step * sequence
            b_lse2 = tl.load(lse + o_row2 + o_q, mask=m_q, other=float("inf"))
            b_delta2 = tl.load(delta + o_row2 + o_q, mask=m_q, other=0.0)
            b_s2 = tl.dot(b_k2, tl.trans(b_q2), input_precision=PRECISION) * scale
            b_ds2 = score_gradient(b_s2, b_g, b_lse2[None, :], b_delta2[None, :], m_pair)
            b_dk2 += tl.dot(
                b_ds2.to(GRADIENT_DTYPE),
                b_q2.to(GRADIENT_DTYPE),
                input_precision=GRADIENT_PRECISION,
            )
        p_q += tile_step(stride_qs, BLOCK_Q)
        p_g += tile_step(stride_gq, BLOCK_Q)

    store_tile(p_o + o_out, b_dk * gradient_scale, o_k < sequence, D, BLOCK_D)
    if PAIR:
        m_second = o_k < step * sequence
        store_tile(p_o + stride_oh + o_out, b_dk2 * gradient_scale, m_second, D, BLOCK_D)
