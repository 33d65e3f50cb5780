"""Head-averaged attention probabilities for rows of any length, in Triton.

    s = q · k · scale,   lse_i = log Σ_j e^{s_ij},   P_ij = e^{s_ij − lse_i}             (each head on its own)
    A = (1/H) Σ_h P
    Δ_i = Σ_j P_ij dA_ij,   dS = P ∘ (dA − Δ),   dQ = scale/H · dS K,   dK = scale/H · dSᵀ Q

Two passes: `statistics_kernel` finds lse [B, H, S] in one online sweep over the keys; `map_kernel` sums P over heads in
the registers of one (sample, query tile, key tile), so that no per-head probability is ever written. The gradient is
in `gradient_kernels.py`, both directions for short rows are in `short_kernels.py`, and `gpu.py` chooses and launches.
Every output element has one writer and one order of summation: the same bits every time.

Exponentials are base 2 with log₂e folded into the scale, lse included. Rows without a real query or key get lse = +∞,
which makes their P = 2^{s − ∞} = 0 everywhere downstream. Padding is loaded as 0, so NaN there stays there. The 1/H of
the mean waits until the end of both directions, so that a row with one key has the gradient 0 and not nearly 0.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from comet_kernels.ops.mean_attention.tiles import (
    exponents_from,
    load_tile,
    masked_scores,
    place,
    real_positions,
    store_statistics,
    tile_offsets,
    tile_step,
)


@triton.jit
def statistics_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S], out: log2 of the sum of 2^scores
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
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, head, query tile): the running maximum and sum over all keys."""
    sample, head, q_start = place(sequence, heads, BLOCK_Q)
    o_q = q_start + tl.arange(0, BLOCK_Q)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    p_q = query + sample * stride_qb + head * stride_qh + q_start * stride_qs
    p_k = key + sample * stride_kb + head * stride_kh
    o_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    b_q = load_tile(
        p_q + tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE), m_q, D, BLOCK_D
    )

    b_max = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, sequence, BLOCK_K):
        m_k = real_positions(mask, sample, start, sequence, BLOCK_K, HAS_MASK)
        b_k = load_tile(p_k + o_tile, m_k, D, BLOCK_D)
        b_s = masked_scores(b_q, b_k, m_k, scale, PRECISION)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_from = exponents_from(b_new)
        b_sum = b_sum * tl.exp2(b_max - b_from) + tl.sum(tl.exp2(b_s - b_from[:, None]), 1)
        b_max = b_new
        p_k += tile_step(stride_ks, BLOCK_K)

    p_lse = lse + (sample * heads + head) * sequence + o_q
    store_statistics(p_lse, b_max, b_sum, m_q, o_q < sequence)


@triton.jit
def map_kernel(
    query,  # [B, H, S, D], any strides
    key,  # [B, H, S, D], any strides
    mask,  # uint8 [B, S]
    lse,  # float32 [B, H, S]
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
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (sample, query tile, key tile): the probabilities of all heads, summed in registers."""
    q_tiles = tl.cdiv(sequence, BLOCK_Q)
    k_tiles = tl.cdiv(sequence, BLOCK_K)
    pair = tl.program_id(0) % (q_tiles * k_tiles)
    sample = (tl.program_id(0) // (q_tiles * k_tiles)).to(tl.int64)
    q_start = ((pair // k_tiles) * BLOCK_Q).to(tl.int64)
    k_start = ((pair % k_tiles) * BLOCK_K).to(tl.int64)
    o_q = q_start + tl.arange(0, BLOCK_Q)
    o_k = k_start + tl.arange(0, BLOCK_K)
    m_q = real_positions(mask, sample, q_start, sequence, BLOCK_Q, HAS_MASK)
    m_k = real_positions(mask, sample, k_start, sequence, BLOCK_K, HAS_MASK)
    p_q = query + sample * stride_qb + q_start * stride_qs
    p_k = key + sample * stride_kb + k_start * stride_ks
    o_q_tile = tile_offsets(stride_qs, stride_qd, BLOCK_Q, BLOCK_D, WIDE)
    o_k_tile = tile_offsets(stride_ks, stride_kd, BLOCK_K, BLOCK_D, WIDE)
    p_lse = lse + sample * heads * sequence + o_q

    b_a = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for _ in range(heads):
        b_q = load_tile(p_q + o_q_tile, m_q, D, BLOCK_D)
        b_k = load_tile(p_k + o_k_tile, m_k, D, BLOCK_D)
        b_lse = tl.load(p_lse, mask=m_q, other=float("inf"))
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_a += tl.exp2(b_s - b_lse[:, None])
        p_q += stride_qh
        p_k += stride_kh
        p_lse += sequence
    b_a = tl.where(m_k[None, :], b_a * (1.0 / heads), 0.0)

    p_a = attention + (sample * sequence + q_start) * sequence + k_start
    o_pair = tile_offsets(sequence, 1, BLOCK_Q, BLOCK_K, False)
    tl.store(p_a + o_pair, b_a, mask=(o_q < sequence)[:, None] & (o_k < sequence)[None, :])
