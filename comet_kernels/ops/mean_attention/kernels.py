"""Head-averaged attention probabilities, in Triton; their gradient is in `gradient_kernels.py`.

    s = q · k · scale,   lse_i = log Σ_j e^{s_ij},   P_ij = e^{s_ij − lse_i}             (each head on its own)
    A = (1/H) Σ_h P
    Δ_i = Σ_j P_ij dA_ij / H,   dS = P ∘ (dA/H − Δ),   dQ = scale · dS K,   dK = scale · dSᵀ Q

Two passes forward: `statistics_kernel` finds lse [B, H, S] in one online sweep over the keys; `map_kernel` sums P over
heads in the registers of one (sample, query tile, key tile), so that no per-head probability is ever written. Backward
recomputes P from lse: `delta_kernel`, then `query_gradient_kernel` and `key_gradient_kernel`. Every output element
has one writer and one order of summation: the same bits every time.

Exponentials are base 2 with log₂e folded into the scale, lse included. Rows without a real query or key get lse = +∞,
which makes their P = 2^{s − ∞} = 0 everywhere downstream. Padding is loaded as 0, so NaN there stays there.
"""
# mypy: disable-error-code="no-untyped-def"

import math
from typing import Any

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch

LOG2_E = math.log2(math.e)

# By (architecture, shape class): see `shape_class`. The default row fits the 99 KiB of shared memory of small GPUs.
FORWARD: launch.Table = {
    ("default", "half-64"): {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2},
    ("default", "half-256"): {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 1},
    ("default", "tf32-64"): {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2},
    ("default", "tf32-256"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 1},
    ("default", "ieee-64"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    ("default", "ieee-256"): {"BLOCK_Q": 16, "BLOCK_K": 32, "num_warps": 8, "num_stages": 1},
    ("gfx", "half-256"): {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    ("gfx", "ieee-256"): {"BLOCK_Q": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
}


@triton.jit
def real_positions(mask, sample, start, sequence, BLOCK: tl.constexpr, HAS_MASK: tl.constexpr):
    """Which positions of a tile exist and are no padding. mask: uint8 [B, S], contiguous."""
    o_s = start + tl.arange(0, BLOCK)
    m_s = o_s < sequence
    if HAS_MASK:
        m_s &= tl.load(mask + sample * sequence + o_s, mask=m_s, other=0) != 0
    return m_s


@triton.jit
def tile_offsets(
    row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr
):
    """[ROWS, COLUMNS] from a tile's first number, which has a 64-bit address: 32 bits do unless strides are huge."""
    o_row, o_column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    if WIDE:
        o_row, o_column = o_row.to(tl.int64), o_column.to(tl.int64)
    return o_row[:, None] * row_stride + o_column[None, :] * column_stride


@triton.jit
def load_tile(p_tile, m_s, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] of one head; 0 where a position is padding and beyond D."""
    return tl.load(p_tile, mask=m_s[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)


@triton.jit
def tile_step(stride, BLOCK: tl.constexpr):
    """From one tile to the next, in 64 bits."""
    return tl.full([], BLOCK, tl.int64) * stride


@triton.jit
def place(sequence, heads, BLOCK: tl.constexpr):
    """Of a program per (sample, head, tile): sample, head, which of the B·H heads, and the tile's first position."""
    tiles = tl.cdiv(sequence, BLOCK)
    o_head = (tl.program_id(0) // tiles).to(tl.int64)
    start = ((tl.program_id(0) % tiles) * BLOCK).to(tl.int64)
    return o_head // heads, o_head % heads, o_head, start


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
    sample, head, o_head, q_start = place(sequence, heads, BLOCK_Q)
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
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_s = tl.where(m_k[None, :], b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # A row that has seen padding only is measured from 0: −∞ − (−∞) would be NaN.
        b_from = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_sum = b_sum * tl.exp2(b_max - b_from) + tl.sum(tl.exp2(b_s - b_from[:, None]), 1)
        b_max = b_new
        p_k += tile_step(stride_ks, BLOCK_K)

    b_lse = tl.where(m_q & (b_sum != 0), b_max + tl.log2(b_sum), float("inf"))
    tl.store(lse + o_head * sequence + o_q, b_lse, mask=o_q < sequence)


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
    b_a = tl.where(m_k[None, :], b_a / heads, 0.0)

    p_a = attention + (sample * sequence + q_start) * sequence + k_start
    o_pair = tile_offsets(sequence, 1, BLOCK_Q, BLOCK_K, False)
    tl.store(p_a + o_pair, b_a, mask=(o_q < sequence)[:, None] & (o_k < sequence)[None, :])


def products(query: torch.Tensor) -> str:
    """How float products run: "half" for 16-bit inputs, else "tf32" where torch allows it, else "ieee"."""
    if query.dtype != torch.float32:
        return "half"
    return "tf32" if launch.products_in_tf32(query.device) else "ieee"


def shape_class(head_size: int, kind: str) -> str:
    """The table's second key: kind of product and the largest D it covers."""
    return f"{kind}-{64 if head_size <= 64 else 256}"


def constants(
    kind: str,
    dtype: torch.dtype,
    head_size: int,
    *,
    masked: bool,
    backward: bool,
    hip: bool,
    wide: bool = False,
) -> dict[str, Any]:
    """What the kernels are compiled with beside the table's options."""
    values: dict[str, Any] = {
        "HAS_MASK": masked,
        "D": head_size,
        "BLOCK_D": max(16, triton.next_power_of_2(head_size)),
        "WIDE": wide,
        "PRECISION": "ieee" if kind == "half" else kind,
    }
    if backward:
        # dS is far below 1e-6: beneath what float16 can hold, so its products take float32's range. TF32 keeps all of
        # float16's mantissa.
        half = dtype == torch.float16
        values["GRADIENT_DTYPE"] = tl.bfloat16 if dtype == torch.bfloat16 else tl.float32
        values["GRADIENT_PRECISION"] = ("ieee" if hip else "tf32") if half else values["PRECISION"]
    return values


def constants_for(
    query: torch.Tensor, mask: torch.Tensor | None, strides: tuple[int, ...], *, backward: bool
) -> dict[str, Any]:
    """`constants` of these arguments; `strides` are those within a tile."""
    return constants(
        products(query),
        query.dtype,
        query.shape[-1],
        masked=mask is not None,
        backward=backward,
        hip=torch.version.hip is not None,
        wide=max(strides)
        >= 1 << 22,  # times 256, the most positions or columns of a tile, still fits 31 bits
    )


def bytes_of(mask: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    """The mask as uint8, or any tensor for a kernel that will not look at it."""
    return otherwise if mask is None else mask.contiguous().view(torch.uint8)


def forward(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map [B, S, S] and the base-2 row statistics [B, H, S], float32."""
    batch, heads, sequence, head_size = query.shape
    attention = query.new_empty(batch, sequence, sequence, dtype=torch.float32)
    lse = query.new_empty(batch, heads, sequence, dtype=torch.float32)
    if batch * heads == 0:
        return attention.zero_(), lse
    mask_bytes = bytes_of(mask, otherwise=lse)
    strides = (*query.stride(), *key.stride())
    sizes = (heads, sequence, scale * LOG2_E, *strides)
    # The strides between samples and heads only ever meet 64-bit numbers.
    fixed = constants_for(query, mask, (*query.stride()[2:], *key.stride()[2:]), backward=False)
    where = (FORWARD, shape_class(head_size, products(query)), query.device)

    def row_tiles(o: launch.Options) -> tuple[int]:
        return (batch * heads * triton.cdiv(sequence, o["BLOCK_Q"]),)

    def pairs(o: launch.Options) -> tuple[int]:
        return (batch * triton.cdiv(sequence, o["BLOCK_Q"]) * triton.cdiv(sequence, o["BLOCK_K"]),)

    rows = (query, key, mask_bytes, lse, *sizes)
    launch.launch(statistics_kernel, row_tiles, rows, fixed, *where)
    maps = (query, key, mask_bytes, lse, attention, *sizes)
    launch.launch(map_kernel, pairs, maps, fixed, *where)
    return attention, lse
