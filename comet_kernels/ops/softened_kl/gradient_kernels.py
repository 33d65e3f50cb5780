"""The gradient of rows of logits, in Triton; its formula stands in `kernels.py`."""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl import rows as every_device
from comet_kernels.ops.softened_kl.kernels import LN_2, LOG2_E
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

NEAR_ZERO = tl.constexpr(every_device.NEAR_ZERO)

# By (architecture, shape class), as in `kernels.py`.
BACKWARD: launch.Table = {
    ("default", "half"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
    ("default", "float"): {"BLOCK_V": 2048, "num_warps": 4, "num_stages": 1},
}


@triton.jit
def _slope(b_s, b_t, difference, t_log):
    """q − p of two sides in base 2, without a difference of exponentials where q = p 2^y with y near 0."""
    b_p = tl.exp2(b_t - t_log)
    b_q = tl.exp2(b_s - (t_log + difference))
    b_y = (b_s - b_t - difference) * LN_2
    b_series = b_y + b_y * b_y * (0.5 + b_y * (1 / 6 + b_y * (1 / 24)))  # of e^y − 1
    return tl.where(tl.abs(b_y) < NEAR_ZERO, b_p * b_series, b_q - b_p)


@triton.jit
def gradient_kernel(
    student,  # [N, V], columns contiguous
    teacher,  # [N, V], columns contiguous
    student_bias,  # [V], added to every row
    teacher_bias,  # [V]
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
    SHIFTED: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT_BIAS: tl.constexpr,
    TEACHER_BIAS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One (row, block of columns): scale · T · (softmax(s/T) − softmax(t/T)); reads its block before it writes it."""
    row = (tl.program_id(0) % rows).to(tl.int64)
    start = (tl.program_id(0) // rows) * BLOCK_V
    chosen = row < rows
    if HAS_MASK:
        chosen = tl.load(mask + row) != 0
    degrees = tl.load(temperature + row)
    factor = tl.load(scale + row) * degrees
    inverse = LOG2_E / degrees
    s_max = tl.load(statistics + row)
    difference = tl.load(statistics + rows + row) * LOG2_E
    t_max = tl.load(statistics + 2 * rows + row)
    t_log = tl.load(statistics + 3 * rows + row) * LOG2_E

    first = first_column(row, stride_sn, offset, VECTOR, SHIFTED)
    o_v = start + tl.arange(0, BLOCK_V)
    p_s = row_pointer(student, row, stride_sn, first, ALIGNED, SHIFTED, VECTOR)
    p_t = row_pointer(teacher, row, stride_tn, first, ALIGNED, SHIFTED, VECTOR)
    p_g = row_pointer(gradient, row, stride_gn, first, ALIGNED, SHIFTED, VECTOR) + o_v
    end = first + columns
    if chosen & (start >= first) & (start + BLOCK_V <= end):
        b_s = load(p_s, student_bias, o_v, STUDENT_BIAS)
        b_t = load(p_t, teacher_bias, o_v, TEACHER_BIAS)
        b_g = factor * _slope((b_s - s_max) * inverse, (b_t - t_max) * inverse, difference, t_log)
        tl.store(p_g, b_g.to(gradient.dtype.element_ty))
    else:
        m_read = (o_v >= first) & (o_v < tl.where(chosen, end, first))
        b_s = load_edge(p_s, student_bias, o_v, m_read, 0.0, STUDENT_BIAS)
        b_t = load_edge(p_t, teacher_bias, o_v, m_read, 0.0, TEACHER_BIAS)
        b_g = factor * _slope((b_s - s_max) * inverse, (b_t - t_max) * inverse, difference, t_log)
        b_g = tl.where(chosen, b_g, 0.0)
        m_write = (o_v >= first) & (o_v < end)
        tl.store(p_g, b_g.to(gradient.dtype.element_ty), mask=m_write)


def backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
    gradient: torch.Tensor,
    biases: Biases = NO_BIASES,
) -> None:
    """Write the gradient of Σ scale · loss with respect to the student; `gradient` may be `student`."""
    rows, columns = student.shape
    if not rows:
        return
    loads = with_biases(wide_loads(student, teacher, gradient), biases)
    launch.launch(
        gradient_kernel,
        lambda o: (rows * triton.cdiv(columns + loads["VECTOR"] - 1, o["BLOCK_V"]),),
        (
            student,
            teacher,
            *bias_pointers(biases, otherwise=temperature),
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
            offset_of(student, loads["VECTOR"]),
        ),
        {"HAS_MASK": mask is not None, **loads},
        BACKWARD,
        shape_class(student, teacher),
        student.device,
        repeatable=gradient.data_ptr() != student.data_ptr(),
    )
