"""Loss and gradient of rows of logits on every device: Triton on GPUs, C++ on the CPU, plain torch in pieces elsewhere.

All three take columns that are contiguous and keep a row's statistics as float32 [4, N]: the student's maximum, by how
much its log-sum exceeds the teacher's, the teacher's maximum and log-sum, with log Σ e^{x/T} = maximum / T + log-sum.
They add a bias [V] to either side's rows on the way, since a matrix product that is to add it writes it to the whole
result first.

With x = (s − s*)/T − (t − t*)/T and means over the teacher's distribution p, KL = log E[e^x] − E[x]. Where the two
sides nearly agree, that is the rounding of two numbers that cancel, but its series in the cumulants of x,
κ₂/2! + κ₃/3! + …, consists of small numbers; it takes the sums of p x² and p x³. The series counts below NEAR, where it
and the logarithm differ by no more than ROUNDING. The gradient q − p = p (e^y − 1), likewise, is no difference of
exponentials where y is small.
"""

import torch

from comet_kernels import native

# Also in csrc/softened_kl/cpu.cpp and cpu/simd.h. Below NEAR, x is about 0.03 and the next term of the series 1e-7.
NEAR = 5e-4
ROUNDING = 5e-7
NEAR_ZERO = 1 / 16

# Float32 numbers of one piece of plain torch, all temporaries together.
PIECE_BYTES = 64 << 20


# Of student and teacher: [V] in the dtype of the logits, contiguous; None for 0.
Biases = tuple[torch.Tensor | None, torch.Tensor | None]
NO_BIASES: Biases = (None, None)


def checked_temperature(temperature: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The temperatures as they came, having been checked where that costs no synchronisation with the host.

    A chosen row's temperature that is not a finite number above 0 is a `ValueError` on the CPU, a device-side assertion
    on CUDA, and NaN elsewhere.
    """
    good = torch.isfinite(temperature) & (temperature > 0)
    if mask is not None:
        good |= ~mask
    if temperature.device.type == "cuda":
        torch._assert_async(good.all(), "temperature: expected finite numbers above 0")
        return temperature
    if temperature.device.type == "cpu":
        if not good.all():
            got = temperature[~good][0].item()
            raise ValueError(f"temperature: got {got}, expected finite numbers above 0")
        return temperature
    return torch.where(good, temperature, float("nan"))


def forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    biases: Biases = NO_BIASES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """T² KL of every row [N], 0 on rows left out, and the statistics [4, N]."""
    if student.device.type == "cuda":
        from comet_kernels.ops.softened_kl import kernels

        return kernels.forward(student, teacher, temperature, mask, biases)
    if student.device.type == "cpu":
        return _native_forward(student, teacher, temperature, mask, biases)
    return plain_forward(student, teacher, temperature, mask, biases)


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
    """Write scale · T · (softmax(s/T) − softmax(t/T)), 0 on rows left out; `gradient` may be `student`."""
    arguments = (student, teacher, temperature, mask, scale, statistics, gradient, biases)
    if student.device.type == "cuda":
        from comet_kernels.ops.softened_kl import gradient_kernels

        gradient_kernels.backward(*arguments)
    elif student.device.type == "cpu":
        _native_backward(*arguments)
    else:
        plain_backward(*arguments)


def _in_float32(biases: Biases) -> Biases:
    student_bias, teacher_bias = (None if bias is None else bias.float() for bias in biases)
    return student_bias, teacher_bias


def _native_forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    biases: Biases = NO_BIASES,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = student.shape
    loss = student.new_empty(rows, dtype=torch.float32)
    statistics = student.new_empty(4, rows, dtype=torch.float32)
    student_bias, teacher_bias = _in_float32(biases)
    native.library().softened_kl_forward(
        student=student.data_ptr(),
        teacher=teacher.data_ptr(),
        temperature=temperature.data_ptr(),
        mask=0 if mask is None else mask.data_ptr(),
        n=rows,
        v=columns,
        student_stride=student.stride(0),
        teacher_stride=teacher.stride(0),
        student_dtype=native.DTYPE_CODES[student.dtype],
        teacher_dtype=native.DTYPE_CODES[teacher.dtype],
        kl=loss.data_ptr(),
        statistics=statistics.data_ptr(),
        threads=torch.get_num_threads(),
        student_bias=0 if student_bias is None else student_bias.data_ptr(),
        teacher_bias=0 if teacher_bias is None else teacher_bias.data_ptr(),
    )
    return loss, statistics


def _native_backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
    gradient: torch.Tensor,
    biases: Biases = NO_BIASES,
) -> None:
    rows, columns = student.shape
    student_bias, teacher_bias = _in_float32(biases)
    native.library().softened_kl_backward(
        student=student.data_ptr(),
        teacher=teacher.data_ptr(),
        temperature=temperature.data_ptr(),
        mask=0 if mask is None else mask.data_ptr(),
        scale=scale.data_ptr(),
        statistics=statistics.data_ptr(),
        n=rows,
        v=columns,
        student_stride=student.stride(0),
        teacher_stride=teacher.stride(0),
        student_dtype=native.DTYPE_CODES[student.dtype],
        teacher_dtype=native.DTYPE_CODES[teacher.dtype],
        gradient=gradient.data_ptr(),
        gradient_stride=gradient.stride(0),
        gradient_dtype=native.DTYPE_CODES[gradient.dtype],
        threads=torch.get_num_threads(),
        student_bias=0 if student_bias is None else student_bias.data_ptr(),
        teacher_bias=0 if teacher_bias is None else teacher_bias.data_ptr(),
    )


def _pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, PIECE_BYTES // (6 * 4 * columns))  # six temporaries at most
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _shifted(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits − shift) / T in float32 and the shift, a row's maximum; rows left out count as zeros."""
    values_RV = logits.float()
    if bias is not None:
        values_RV = values_RV + bias
    if mask is not None:
        values_RV = values_RV.masked_fill(~mask[:, None], 0)
    shift_R = values_RV.amax(-1)
    return (values_RV - shift_R[:, None]).div_(temperature[:, None]), shift_R


def plain_forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    biases: Biases = NO_BIASES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`forward` in plain torch, a few rows at a time."""
    loss = student.new_empty(student.shape[0], dtype=torch.float32)
    statistics = student.new_empty(4, student.shape[0], dtype=torch.float32)
    for rows in _pieces(*student.shape):
        chosen = None if mask is None else mask[rows]
        student_RV, statistics[0, rows] = _shifted(
            student[rows], biases[0], temperature[rows], chosen
        )
        teacher_RV, statistics[2, rows] = _shifted(
            teacher[rows], biases[1], temperature[rows], chosen
        )
        mass_RV = teacher_RV.exp()
        x_RV = torch.sub(student_RV, teacher_RV, out=teacher_RV).masked_fill_(mass_RV == 0, 0)
        student_sum, teacher_sum = student_RV.exp_().sum(-1), mass_RV.sum(-1)
        moments = [mass_RV.mul_(x_RV).sum(-1) / teacher_sum for _ in range(3)]
        kl, statistics[1, rows] = _divergence((student_sum / teacher_sum).log(), *moments)
        kl *= temperature[rows] ** 2
        loss[rows] = kl if chosen is None else kl.masked_fill_(~chosen, 0)
        statistics[3, rows] = teacher_sum.log()
    return loss, statistics


def _divergence(
    difference: torch.Tensor, mean: torch.Tensor, second: torch.Tensor, third: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of rows, and the difference of their log-sums, both from that difference and the moments of x."""
    direct = difference - mean
    series = (second - mean**2) / 2 + (third - mean * (3 * second - 2 * mean**2)) / 6
    near = (direct < NEAR) & ((direct - series).abs() < ROUNDING)
    kl = torch.where(near, series, direct).clamp(min=0)
    return kl, torch.where(near, mean + kl, difference)


def plain_backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: torch.Tensor,
    mask: torch.Tensor | None,
    scale: torch.Tensor,
    statistics: torch.Tensor,
    gradient: torch.Tensor,
    biases: Biases = NO_BIASES,
) -> None:
    """`backward` in plain torch, a few rows at a time."""
    for rows in _pieces(*student.shape):
        chosen = None if mask is None else mask[rows]
        student_RV, _ = _shifted(student[rows], biases[0], temperature[rows], chosen)
        teacher_RV, _ = _shifted(teacher[rows], biases[1], temperature[rows], chosen)
        y_RV = (student_RV - teacher_RV).sub_(statistics[1, rows, None])
        mass_RV = teacher_RV.sub_(statistics[3, rows, None]).exp_()
        student_RV -= (statistics[1, rows] + statistics[3, rows])[:, None]
        slope_RV = student_RV.exp_().sub_(mass_RV)
        small_RV = y_RV.abs() < NEAR_ZERO
        slope_RV = torch.where(small_RV, y_RV.expm1_().mul_(mass_RV), slope_RV)
        slope_RV *= (scale[rows] * temperature[rows])[:, None]
        gradient[rows] = slope_RV if chosen is None else slope_RV.masked_fill_(~chosen[:, None], 0)
