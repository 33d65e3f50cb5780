"""Loss and gradient of rows of logits, in Triton: one read for the loss, another and one write for the gradient.

With c = 1/T and the maxima t* and s* of a row (Hinton, Vinyals and Dean, 2015, for the loss):

    KL = Σ_j p_j ((t_j − t*) − (s_j − s*)) · c + log( Σ e^{(s − s*) c} / Σ e^{(t − t*) c} ),   p = softmax(t c)
    loss = T² · KL,    ∂loss/∂s_j = T · (softmax(s c)_j − p_j)

`chunk_kernel` sweeps one chunk of one row, `row_kernel` joins the chunks of a row; `gradient_kernel` writes one block.
Every lane of a program keeps running maxima and sums of the columns that it meets, so the sweep exchanges nothing
between lanes until its end: an element costs one exponential a side, a lane three more for every vector of 16 bytes.
Chunks have a fixed width, so that few rows fill a GPU as well as many, and the order of summation is the same on every
GPU and beside any other rows.

Measuring both sides from their maxima keeps every term small, and one logarithm of a quotient replaces a difference of
two large ones, so that little cancels where student and teacher nearly agree. A row's statistics are kept as two
numbers a side, maximum and log-sum: their sum, the log-sum-exp, would round away the digits that the gradient of large
logits needs.

A vocabulary such as 250,002 puts most rows off the 16-byte boundaries that wide loads need. Blocks of columns are
therefore counted from the boundary before a row's first column, if both sides lie alike (`wide_loads`).
"""
# mypy: disable-error-code="no-untyped-def"

import math
from typing import Any

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch

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
BACKWARD: launch.Table = {
    ("default", "half"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
    ("default", "float"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
}
JOIN: launch.Table = {("default", "any"): {"num_warps": 1, "num_stages": 1}}


@triton.jit
def first_column(row, stride, offset, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """How far behind a 16-byte boundary a row begins, in columns: where its column 0 stands in the first block."""
    if ALIGNED:
        return ((row * stride + offset) % VECTOR).to(tl.int32)
    else:
        return tl.full([], 0, tl.int32)


@triton.jit
def row_pointer(logits, row, stride, first, ALIGNED: tl.constexpr):
    """Where the first block of a row begins; told that this is a boundary, the compiler loads 16 bytes at once."""
    p_row = logits + row * stride - first
    if ALIGNED:
        p_row = tl.multiple_of(p_row, 16)
    return p_row


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
def _edge(p_s, p_t, o_v, first, stop):
    """A block of both sides with −∞ outside of the row."""
    m_v = (o_v >= first) & (o_v < stop)
    b_s = tl.load(p_s + o_v, mask=m_v, other=-float("inf")).to(tl.float32)
    b_t = tl.load(p_t + o_v, mask=m_v, other=-float("inf")).to(tl.float32)
    return b_s, b_t


@triton.jit
def chunk_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
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
    VECTOR: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One (row, chunk of columns), in one sweep."""
    LANES: tl.constexpr = BLOCK_V // VECTOR
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    scale = LOG2_E / tl.load(temperature + row)
    first = first_column(row, stride_sn, offset, VECTOR, ALIGNED)
    p_s = row_pointer(student, row, stride_sn, first, ALIGNED)
    p_t = row_pointer(teacher, row, stride_tn, first, ALIGNED)
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
        b_s, b_t = _edge(p_s, p_t, begin + o_v, first, stop)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )
    for start in range(whole, rest, BLOCK_V):
        b_s = tl.load(p_s + start + o_v).to(tl.float32)
        b_t = tl.load(p_t + start + o_v).to(tl.float32)
        s_max, t_max, s_sum, t_sum, weighted = _fold(
            b_s, b_t, scale, s_max, t_max, s_sum, t_sum, weighted
        )

    if rest < stop:
        b_s, b_t = _edge(p_s, p_t, rest + o_v, first, stop)
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


@triton.jit
def gradient_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    temperature,  # float32 [N]
    mask,  # uint8 [N]
    scale,  # float32 [N]: the gradient of each row's loss
    statistics,  # float32 [4, N]
    gradient,  # [N, V], columns contiguous, out; may be `student`
    rows,
    columns,
    stride_sn,
    stride_tn,
    stride_gn,
    offset,  # of the student's first number from a 16-byte boundary, in numbers
    HAS_MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One (row, block of columns): scale · T · (softmax(s/T) − softmax(t/T)); reads its block before it writes it."""
    blocks = tl.cdiv(columns + VECTOR - 1, BLOCK_V)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK_V
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    degrees = tl.load(temperature + row)
    factor = tl.load(scale + row) * degrees
    inverse = LOG2_E / degrees
    s_max = tl.load(statistics + row)
    s_log = tl.load(statistics + rows + row) * LOG2_E
    t_max = tl.load(statistics + 2 * rows + row)
    t_log = tl.load(statistics + 3 * rows + row) * LOG2_E

    first = first_column(row, stride_sn, offset, VECTOR, ALIGNED)
    o_v = start + tl.arange(0, BLOCK_V)
    p_s = row_pointer(student, row, stride_sn, first, ALIGNED) + o_v
    p_t = row_pointer(teacher, row, stride_tn, first, ALIGNED) + o_v
    p_g = row_pointer(gradient, row, stride_gn, first, ALIGNED) + o_v
    end = first + columns
    if chosen & (start >= first) & (start + BLOCK_V <= end):
        b_student = tl.exp2((tl.load(p_s).to(tl.float32) - s_max) * inverse - s_log)
        b_teacher = tl.exp2((tl.load(p_t).to(tl.float32) - t_max) * inverse - t_log)
        tl.store(p_g, (factor * (b_student - b_teacher)).to(gradient.dtype.element_ty))
    else:
        m_read = (o_v >= first) & (o_v < tl.where(chosen, end, first))
        b_s = tl.load(p_s, mask=m_read, other=0.0).to(tl.float32)
        b_t = tl.load(p_t, mask=m_read, other=0.0).to(tl.float32)
        b_student = tl.exp2((b_s - s_max) * inverse - s_log)
        b_teacher = tl.exp2((b_t - t_max) * inverse - t_log)
        b_g = tl.where(chosen, factor * (b_student - b_teacher), 0.0)
        m_write = (o_v >= first) & (o_v < end)
        tl.store(p_g, b_g.to(gradient.dtype.element_ty), mask=m_write)


def shape_class(student: torch.Tensor, teacher: torch.Tensor) -> str:
    """The tables' second key."""
    return "float" if max(student.itemsize, teacher.itemsize) == 4 else "half"


def wide_loads(*sides: torch.Tensor) -> dict[str, Any]:
    """Whether all sides' rows lie alike between 16-byte boundaries, and how many of the narrowest numbers fit there."""
    vector = 16 // min(logits.itemsize for logits in sides)
    places = {
        (logits.data_ptr() // logits.itemsize % vector, logits.stride(0) % vector)
        for logits in sides
    }
    return {"ALIGNED": len(places) == 1, "VECTOR": vector}


def _offset(student: torch.Tensor, vector: int) -> int:
    return student.data_ptr() // student.itemsize % vector


def forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [N] and statistics [4, N] of rows of logits; columns must be contiguous."""
    rows, columns = student.shape
    loss = student.new_empty(rows, dtype=torch.float32)
    statistics = student.new_empty(4, rows, dtype=torch.float32)
    if not rows:
        return loss, statistics
    loads = wide_loads(student, teacher)
    chunks = triton.cdiv(columns + loads["VECTOR"] - 1, CHUNK)
    parts = student.new_empty(rows, 5, chunks, dtype=torch.float32)
    mask_bytes = temperature if mask is None else mask.view(torch.uint8)
    launch.launch(
        chunk_kernel,
        lambda _: (rows * chunks,),
        (
            student,
            teacher,
            temperature,
            mask_bytes,
            parts,
            rows,
            columns,
            chunks,
            student.stride(0),
            teacher.stride(0),
            _offset(student, loads["VECTOR"]),
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


def backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Write the gradient of Σ scale · loss with respect to the student; `gradient` may be `student`."""
    rows, columns = student.shape
    if not rows:
        return
    loads = wide_loads(student, teacher, gradient)
    launch.launch(
        gradient_kernel,
        lambda o: (rows * triton.cdiv(columns + loads["VECTOR"] - 1, o["BLOCK_V"]),),
        (
            student,
            teacher,
            temperature,
            temperature if mask is None else mask.view(torch.uint8),
            scale,
            statistics,
            gradient,
            rows,
            columns,
            student.stride(0),
            teacher.stride(0),
            gradient.stride(0),
            _offset(student, loads["VECTOR"]),
        ),
        {"HAS_MASK": mask is not None, **loads},
        BACKWARD,
        shape_class(student, teacher),
        student.device,
        repeatable=gradient.data_ptr() != student.data_ptr(),
    )
