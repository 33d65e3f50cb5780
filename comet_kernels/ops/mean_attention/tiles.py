"""What the Triton kernels of `mean_attention` share: a program's place, real positions, tiles in and out.

Prefixes in all of them: `p_` a pointer, `o_` offsets, `m_` a mask, `b_` a block of numbers in registers.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def place(sequence, groups, BLOCK: tl.constexpr):
    """Of a program per (sample, group of heads, tile): sample, group, and the tile's first position.

    Tiles of one group come first, then the groups of one sample: programs that run together read the same keys, and
    the same part of dA, from L2.
    """
    tiles = tl.cdiv(sequence, BLOCK)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    start = ((tl.program_id(0) % tiles) * BLOCK).to(tl.int64)
    return group // groups, group % groups, start


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
def tile_step(stride, BLOCK: tl.constexpr):
    """From one tile to the next, in 64 bits."""
    return tl.full([], BLOCK, tl.int64) * stride


@triton.jit
def load_tile(p_tile, m_s, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] of one head; 0 where a position is padding and beyond D."""
    return tl.load(p_tile, mask=m_s[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)


@triton.jit
def store_tile(p_tile, b_rows, m_s, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] of one head, in the dtype that lies there."""
    m_rows = m_s[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    tl.store(p_tile, b_rows.to(p_tile.dtype.element_ty), mask=m_rows)


@triton.jit
def masked_scores(b_q, b_k, m_k, scale, PRECISION: tl.constexpr):
    """[BLOCK_Q, BLOCK_K] base-2 scores, −∞ at padding keys: scale and mask cost one multiply-add together."""
    b_bias = tl.where(m_k, 0.0, -float("inf"))
    return tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_bias[None, :]


@triton.jit
def exponents_from(b_max):
    """What a row's exponents are measured from: its maximum, or 0 where all is padding, since −∞ − (−∞) is NaN."""
    return tl.where(b_max == -float("inf"), 0.0, b_max)


@triton.jit
def store_statistics(p_lse, b_max, b_sum, m_q, m_exists):
    """log2 of the sum of 2^scores, +∞ for rows without a real query or key."""
    b_lse = tl.where(m_q & (b_sum != 0), b_max + tl.log2(b_sum), float("inf"))
    tl.store(p_lse, b_lse, mask=m_exists)
