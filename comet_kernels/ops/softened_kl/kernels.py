"""Loss and gradient of rows of logits, in Triton: one read for the loss, another and one write for the gradient.

With c = 1/T and the maxima t* and s* of a row (Hinton, Vinyals and Dean, 2015, for the loss):

    KL = Σ_j p_j ((t_j − t*) − (s_j − s*)) · c + log( Σ e^{(s − s*) c} / Σ e^{(t − t*) c} ),   p = softmax(t c)
    loss = T² · KL,    ∂loss/∂s_j = T · (softmax(s c)_j − p_j)

`chunk_kernel` sweeps one chunk of one row, `row_kernel` joins the chunks of a row; `gradient_kernel` writes one block.
Every lane of a program keeps running maxima and sums of the columns that it meets, so the sweep exchanges nothing
between lanes until its end: an element costs one exponential a side, a lane two more for every vector of 16 bytes.
Chunks have a fixed width, so that few rows fill a GPU as well as many, and the order of summation is the same on every
GPU and beside any other rows.

Measuring both sides from their maxima keeps every term small, and one logarithm of a quotient replaces a difference of
two large ones, so that little cancels where student and teacher nearly agree. A row's statistics are kept as two
numbers a side, maximum and log-sum: their sum, the log-sum-exp, would round away the digits that the gradient of large
logits needs.
"""
# mypy: disable-error-code="no-untyped-def"

import math

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl.loads import (
    bias_pointers,
    first_column,
    load,
    load_edge,
    offset_of,
    row_pointer,
    shape_class,
    wide_loads,
    with_biases,
)
from comet_kernels.ops.softened_kl.rows import NO_BIASES, Biases

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))

# Columns of one program of the forward: eight chunks for 250,002, so that 256 rows are 2048 programs; a multiple of
# every BLOCK_V.
CHUNK = 32768

# By (architecture, shape class); the class is the wider dtype of the two sides.
FORWARD: launch.Table = {
    ("default", "half"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
    ("default", "float"): {"BLOCK_V": 1024, "num_warps": 4, "num_stages": 1},
}
JOIN: launch.Table = {("default", "any"): {"num_warps": 1, "num_stages": 1}}


@triton.jit
def _largest(logits, so_far):
    """The running maximum, and where to measure from: −∞ − (−∞) would be NaN, so 0 for −∞."""
    largest = tl.maximum(so_far, logits)
    return largest, tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def _moved(weighted, t_sum, t_shift, s_shift, shrink):
    """Σ e^t (t − s) of parts whose maxima lie by the shifts above what is measured from now."""
    # Mass that vanishes beside the rest weighs nothing, even where the student says −∞.
    return tl.where(shrink > 0, shrink * (weighted + t_sum * (t_shift - s_shift)), 0.0)


@triton.jit
def _fold(b_student, b_teacher, scale, s_max, t_max, s_sum, t_sum, weighted):
    """The running statistics [LANES] with one more block of columns [LANES, VECTOR]. scale: log2 e / T."""
    s_new, s_from = _largest(tl.max(b_student, 1), s_max)
    t_new, t_from = _largest(tl.max(b_teacher, 1), t_max)
    b_s = b_student - s_from[:, None]
    b_t = b_teacher - t_from[:, None]
    b_mass = tl.exp2(b_t * scale)
    # Where the teacher has no mass the difference may be ∞ or NaN; the term is 0 there.
    b_weighted = tl.where(b_mass > 0, b_mass * (b_t - b_s), 0.0)

    s_shift = tl.where(s_max == -float("inf"), 0.0, s_max - s_from)
    t_shift = tl.where(t_max == -float("inf"), 0.0, t_max - t_from)
    shrink = tl.exp2(t_shift * scale)
    weighted = _moved(weighted, t_sum, t_shift, s_shift, shrink) + tl.sum(b_weighted, 1)
    s_sum = s_sum * tl.exp2(s_shift * scale) + tl.sum(tl.exp2(b_s * scale), 1)
    t_sum = t_sum * shrink + tl.sum(b_mass, 1)
    return s_new, t_new, s_sum, t_sum, weighted


@triton.jit
def _join(s_max, t_max, s_sum, t_sum, weighted, scale):
    """The statistics of many parts, as those of the whole."""
    s_all, s_from = _largest(tl.max(s_max, 0), -float("inf"))
    t_all, t_from = _largest(tl.max(t_max, 0), -float("inf"))
    s_shift = tl.where(s_max == -float("inf"), 0.0, s_max - s_from)
    t_shift = tl.where(t_max == -float("inf"), 0.0, t_max - t_from)
    shrink = tl.exp2(t_shift * scale)
    weighted = tl.sum(_moved(weighted, t_sum, t_shift, s_shift, shrink), 0)
    s_sum = tl.sum(s_sum * tl.exp2(s_shift * scale), 0)
    return s_all, t_all, s_sum, tl.sum(t_sum * shrink, 0), weighted


@triton.jit
def chunk_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    student_bias,  # [V], added to every row
    teacher_bias,  # [V]
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    parts,  # float32 [N, 5, chunks], out: maxima of student and teacher, their sums, Σ e^t (t − s)
    rows,
    columns,
    chunks,
    stride_sn,
    stride_tn,
    offset,  # of the student's first number from a 16-byte boundary, in numbers
    HAS_MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    SHIFTED: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT_BIAS: tl.constexpr,
    TEACHER_BIAS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One (row, chunk of columns), in one sweep."""
    LANES: tl.constexpr = BLOCK_V // VECTOR
    # Programs that run together take the same columns of different rows, whose biases they find in the cache.
    row = (tl.program_id(0) % rows).to(tl.int64)
    chunk = tl.program_id(0) // rows
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    scale = LOG2_E / tl.load(temperature + row)
    first = first_column(row, stride_sn, offset, VECTOR, SHIFTED)
    p_s = row_pointer(student, row, stride_sn, first, ALIGNED, SHIFTED, VECTOR)
    p_t = row_pointer(teacher, row, stride_tn, first, ALIGNED, SHIFTED, VECTOR)
    o_lane, o_number = tl.arange(0, LANES)[:, None], tl.arange(0, VECTOR)[None, :]
    # A lane's numbers are neighbours where it loads them at once, else neighbouring lanes load neighbouring numbers.
    o_v = o_lane * VECTOR + o_number if ALIGNED else o_number * LANES + o_lane

    # The row is [first, end); only its first and last block, of this chunk's [begin, stop), have columns to leave out.
    end = tl.where(chosen, first + columns, 0)
    begin = chunk * CHUNK
    stop = tl.minimum(begin + CHUNK, end)
    whole = tl.where(begin < first, begin + BLOCK_V, begin)
    rest = tl.maximum(whole, stop // BLOCK_V * BLOCK_V)

    s_max = tl.full([LANES], -float("inf"), tl.float32)
    t_max = tl.full([LANES], -float("inf"), tl.float32)
    s_sum = tl.zeros([LANES], tl.float32)
    t_sum = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)
    if begin < whole:
        m_v = (begin + o_v >= first) & (begin + o_v < stop)
        b_s = load_edge(p_s, student_bias, begin + o_v, m_v, -float("inf"), STUDENT_BIAS)
        b_t = load_edge(p_t, teacher_bias, begin + o_v, m_v, -float("inf"), TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )
    for start in range(whole, rest, BLOCK_V):
        b_s = load(p_s, student_bias, start + o_v, STUDENT_BIAS)
        b_t = load(p_t, teacher_bias, start + o_v, TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )

    if rest < stop:
        m_v = (rest + o_v >= first) & (rest + o_v < stop)
        b_s = load_edge(p_s, student_bias, rest + o_v, m_v, -float("inf"), STUDENT_BIAS)
        b_t = load_edge(p_t, teacher_bias, rest + o_v, m_v, -float("inf"), TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )

    s_max, t_max, s_sum, t_sum, weighted = _join(s_max, t_max, s_sum, t_sum, weighted, scale)
    p_part = parts + 5 * row * chunks + chunk
    tl.store(p_part, s_max)
    tl.store(p_part + chunks, t_max)
    tl.store(p_part + 2 * chunks, s_sum)
    tl.store(p_part + 3 * chunks, t_sum)
    tl.store(p_part + 4 * chunks, weighted)


@triton.jit
def row_kernel(
    parts,  # float32 [N, 5, chunks]
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    loss,  # float32 [N], out: T² KL, 0 on rows left out
    statistics,  # float32 [4, N], out: student's maximum and log-sum, teacher's maximum and log-sum
    rows,
    chunks,
    HAS_MASK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row: its chunks joined."""
    row = tl.program_id(0).to(tl.int64)
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    degrees = tl.load(temperature + row)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < chunks
    p_part = parts + 5 * row * chunks + o_c
    s_max, t_max, s_sum, t_sum, weighted = _join(
        tl.load(p_part, mask=m_c, other=-float("inf")),
        tl.load(p_part + chunks, mask=m_c, other=-float("inf")),
        tl.load(p_part + 2 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 3 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 4 * chunks, mask=m_c, other=0.0),
        LOG2_E / degrees,
    )
    kl = weighted / t_sum / degrees + tl.log2(s_sum / t_sum) * LN_2
    tl.store(loss + row, tl.where(chosen, degrees * degrees * kl, 0.0))
    tl.store(statistics + row, tl.where(chosen, s_max, 0.0))
    tl.store(statistics + rows + row, tl.where(chosen, tl.log2(s_sum) * LN_2, 0.0))
    tl.store(statistics + 2 * rows + row, tl.where(chosen, t_max, 0.0))
    tl.store(statistics + 3 * rows + row, tl.where(chosen, tl.log2(t_sum) * LN_2, 0.0))


def forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    biases: Biases = NO_BIASES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [N] and statistics [4, N] of rows of logits; columns must be contiguous."""
    rows, columns = student.shape
    loss = student.new_empty(rows, dtype=torch.float32)
    statistics = student.new_empty(4, rows, dtype=torch.float32)
    if not rows:
        return loss, statistics
    loads = with_biases(wide_loads(student, teacher), biases)
    chunks = triton.cdiv(columns + loads["VECTOR"] - 1, CHUNK)
    parts = student.new_empty(rows, 5, chunks, dtype=torch.float32)
    mask_bytes = temperature if mask is None else mask.view(torch.uint8)
    launch.launch(
        chunk_kernel,
        lambda _: (rows * chunks,),
        (
            student,
            teacher,
            *bias_pointers(biases, otherwise=temperature),
            temperature,
            mask_bytes,
            parts,
            rows,
            columns,
            chunks,
            student.stride(0),
            teacher.stride(0),
            offset_of(student, loads["VECTOR"]),
        ),
        {"HAS_MASK": mask is not None, "CHUNK": CHUNK, **loads},
        FORWARD,
        shape_class(student, teacher),
        student.device,
    )
    launch.launch(
        row_kernel,
        lambda _: (rows,),
        (parts, temperature, mask_bytes, loss, statistics, rows, chunks),
        {"HAS_MASK": mask is not None, "BLOCK_C": triton.next_power_of_2(chunks)},
        JOIN,
        "any",
        student.device,
    )
    return loss, statistics
