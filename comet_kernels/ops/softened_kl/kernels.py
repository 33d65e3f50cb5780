"""Loss and gradient of rows of logits, in Triton: one read for the loss, another and one write for the gradient.

With c = 1/T and the maxima t* and s* of a row (Hinton, Vinyals and Dean, 2015, for the loss):

    x_j = (s_j − s*) − (t_j − t*),    p = softmax(t c)
    KL = log( Σ e^{(s − s*) c} / Σ e^{(t − t*) c} ) − c Σ_j p_j x_j
    loss = T² · KL,    ∂loss/∂s_j = T · (softmax(s c)_j − p_j)

`chunk_kernel` sweeps one chunk of one row, `row_kernel` joins the chunks of a row; `gradient_kernel` writes one block.
Every lane of a program keeps running maxima and sums of the columns that it meets, so the sweep exchanges nothing
between lanes until its end: an element costs one exponential a side, a lane two more for every vector of 16 bytes.
Chunks have a fixed width, so that few rows fill a GPU as well as many, and the order of summation is the same on every
GPU and beside any other rows.

Measuring both sides from their maxima keeps every term small, and one logarithm of a quotient replaces a difference of
two large ones; where student and teacher nearly agree, a series of small numbers replaces both (`rows.py`), for three
multiplications and additions an element. A row's statistics are kept as two numbers a side: their sum, the log-sum-exp,
would round away the digits that the gradient of large logits needs.
"""
# mypy: disable-error-code="no-untyped-def"

import math

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl import rows as every_device
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

NEAR = tl.constexpr(every_device.NEAR)
ROUNDING = tl.constexpr(every_device.ROUNDING)
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
def _moved(t_sum, first, second, third, by, shrink):
    """Σ e^t x, Σ e^t x² and Σ e^t x³ of parts whose x, and whose e^t, are measured from elsewhere now."""
    third = shrink * (third + by * (3 * second + by * (3 * first + by * t_sum)))
    second = shrink * (second + by * (2 * first + by * t_sum))
    first = shrink * (first + by * t_sum)
    # Mass that vanishes beside the rest weighs nothing, even where the student says −∞.
    counts = shrink > 0
    return tl.where(counts, first, 0.0), tl.where(counts, second, 0.0), tl.where(counts, third, 0.0)


@triton.jit
def _fold(b_student, b_teacher, scale, s_max, t_max, s_sum, t_sum, first, second, third):
    """The running statistics [LANES] with one more block of columns [LANES, VECTOR]. scale: log2 e / T."""
    s_new, s_from = _largest(tl.max(b_student, 1), s_max)
    t_new, t_from = _largest(tl.max(b_teacher, 1), t_max)
    b_s = b_student - s_from[:, None]
    b_t = b_teacher - t_from[:, None]
    b_mass = tl.exp2(b_t * scale)
    # Where the teacher has no mass the difference may be ∞ or NaN; the terms are 0 there.
    b_x = tl.where(b_mass > 0, b_s - b_t, 0.0)
    b_first = b_mass * b_x
    b_second = b_first * b_x

    s_shift = tl.where(s_max == -float("inf"), 0.0, s_max - s_from)
    t_shift = tl.where(t_max == -float("inf"), 0.0, t_max - t_from)
    shrink = tl.exp2(t_shift * scale)
    first, second, third = _moved(t_sum, first, second, third, s_shift - t_shift, shrink)
    first += tl.sum(b_first, 1)
    second += tl.sum(b_second, 1)
    third += tl.sum(b_second * b_x, 1)
    s_sum = s_sum * tl.exp2(s_shift * scale) + tl.sum(tl.exp2(b_s * scale), 1)
    t_sum = t_sum * shrink + tl.sum(b_mass, 1)
    return s_new, t_new, s_sum, t_sum, first, second, third


@triton.jit
def _join(s_max, t_max, s_sum, t_sum, first, second, third, scale):
    """The statistics of many parts, as those of the whole."""
    s_all, s_from = _largest(tl.max(s_max, 0), -float("inf"))
    t_all, t_from = _largest(tl.max(t_max, 0), -float("inf"))
    s_shift = tl.where(s_max == -float("inf"), 0.0, s_max - s_from)
    t_shift = tl.where(t_max == -float("inf"), 0.0, t_max - t_from)
    shrink = tl.exp2(t_shift * scale)
    first, second, third = _moved(t_sum, first, second, third, s_shift - t_shift, shrink)
    s_sum = tl.sum(s_sum * tl.exp2(s_shift * scale), 0)
    t_sum = tl.sum(t_sum * shrink, 0)
    return s_all, t_all, s_sum, t_sum, tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)


@triton.jit
def chunk_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    student_bias,  # [V], added to every row
    teacher_bias,  # [V]
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    parts,  # float32 [N, 7, chunks], out: maxima of student and teacher, their sums, Σ e^t x, Σ e^t x², Σ e^t x³
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
    mean = tl.zeros([LANES], tl.float32)
    second = tl.zeros([LANES], tl.float32)
    third = tl.zeros([LANES], tl.float32)
    if begin < whole:
        m_v = (begin + o_v >= first) & (begin + o_v < stop)
        b_s = load_edge(p_s, student_bias, begin + o_v, m_v, -float("inf"), STUDENT_BIAS)
        b_t = load_edge(p_t, teacher_bias, begin + o_v, m_v, -float("inf"), TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, mean, second, third = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, mean, second, third
        )
    for start in range(whole, rest, BLOCK_V):
        b_s = load(p_s, student_bias, start + o_v, STUDENT_BIAS)
        b_t = load(p_t, teacher_bias, start + o_v, TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, mean, second, third = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, mean, second, third
        )

    if rest < stop:
        m_v = (rest + o_v >= first) & (rest + o_v < stop)
        b_s = load_edge(p_s, student_bias, rest + o_v, m_v, -float("inf"), STUDENT_BIAS)
        b_t = load_edge(p_t, teacher_bias, rest + o_v, m_v, -float("inf"), TEACHER_BIAS)
        s_max, t_max, s_sum, t_sum, mean, second, third = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, mean, second, third
        )

    s_max, t_max, s_sum, t_sum, mean, second, third = _join(
        s_max, t_max, s_sum, t_sum, mean, second, third, scale
    )
    p_part = parts + 7 * row * chunks + chunk
    tl.store(p_part, s_max)
    tl.store(p_part + chunks, t_max)
    tl.store(p_part + 2 * chunks, s_sum)
    tl.store(p_part + 3 * chunks, t_sum)
    tl.store(p_part + 4 * chunks, mean)
    tl.store(p_part + 5 * chunks, second)
    tl.store(p_part + 6 * chunks, third)


@triton.jit
def row_kernel(
    parts,  # float32 [N, 7, chunks]
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    loss,  # float32 [N], out: T² KL, 0 on rows left out
    statistics,  # float32 [4, N], out: student's maximum, difference of log-sums, teacher's maximum and log-sum
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
    p_part = parts + 7 * row * chunks + o_c
    s_max, t_max, s_sum, t_sum, mean, second, third = _join(
        tl.load(p_part, mask=m_c, other=-float("inf")),
        tl.load(p_part + chunks, mask=m_c, other=-float("inf")),
        tl.load(p_part + 2 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 3 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 4 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 5 * chunks, mask=m_c, other=0.0),
        tl.load(p_part + 6 * chunks, mask=m_c, other=0.0),
        LOG2_E / degrees,
    )
    inverse = 1.0 / degrees
    mean = mean / t_sum * inverse
    second = second / t_sum * inverse * inverse
    third = third / t_sum * inverse * inverse * inverse
    difference = tl.log2(s_sum / t_sum) * LN_2
    direct = difference - mean
    series = (second - mean * mean) / 2 + (third - mean * (3 * second - 2 * mean * mean)) / 6
    near = (direct < NEAR) & (tl.abs(direct - series) < ROUNDING)
    kl = tl.where(near, series, direct)
    kl = tl.where(kl < 0, 0.0, kl)
    difference = tl.where(near, mean + kl, difference)
    tl.store(loss + row, tl.where(chosen, degrees * degrees * kl, 0.0))
    tl.store(statistics + row, tl.where(chosen, s_max, 0.0))
    tl.store(statistics + rows + row, tl.where(chosen, difference, 0.0))
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
    parts = student.new_empty(rows, 7, chunks, dtype=torch.float32)
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
