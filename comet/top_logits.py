"""Softened KL from the teacher's K largest logits and the mass of all others, spread evenly.

At temperature T, with the teacher's largest logits t_k at pieces k ∈ K and the log-sum-exp of the others,
r = log Σ_{v ∉ K} exp(t_v / T), the teacher's distribution is taken to be

    p_k = exp(t_k / T − z),    p_v = u = exp(r − z) / (V − K) for v ∉ K,    z = log(Σ_k exp(t_k / T) + exp(r))

so the tail's mass is exact at that temperature and only its shape is lost. With the student's q = softmax(s / T),

    KL(p ‖ q) = Σ_k p_k (log p_k − log q_k) + (V − K) u (log u − ℓ),    ∂(T² KL)/∂s_v = T (q_v − p_v)

where ℓ is the mean of log q over the tail. No teacher's logit is multiplied out and no p of length V exists: of the
student's logits, log Σ exp(s / T), K entries and the mean are needed, and the mean of s = h · W + b is h · mean(W) +
mean(b). The gradient T q is written over the logits; the K entries are corrected there, and − T u, the same in every
column, is a product of one column with one row, which is added to the gradients apart.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from comet_kernels import reference
from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl import linear_pieces, rows

# Float32 logits of the teacher that exist at once while the largest are sought.
TEACHER_BYTES = 128 << 20

# The largest logits [N, K], their pieces [N, K] int64, and the log-sum-exp of the others [N] at the run's temperature.
Top = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def largest_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, count: int, temperature: float
) -> Top:
    """The largest logits of `hidden @ weight.T + bias`, and what the tail rule needs of the others.

    Args:
        hidden: `[N, E]`, of any floating dtype; products run in float32.
        weight: `[V, E]`.
        bias: `[V]` or None.
        count: K, at most V.
        temperature: T of the tail's log-sum-exp.

    Returns:
        Values `[N, K]` float32, pieces `[N, K]` int64, log-sum-exp of the others `[N]` float32, −∞ where K = V.
    """
    with launch.without_autocast(hidden.device):
        weight_VE, bias_V = weight.float(), None if bias is None else bias.float()
        step = max(1, TEACHER_BYTES // (4 * len(weight)))
        found = [
            _largest(linear(few.float(), weight_VE, bias_V), count, temperature)
            for few in hidden.split(step)
        ]
    values, pieces, tails = zip(*found, strict=True)
    return torch.cat(values), torch.cat(pieces), torch.cat(tails)


def _largest(logits_NV: Tensor, count: int, temperature: float) -> Top:
    """The same of logits, which are overwritten."""
    values_NK, pieces_NK = logits_NV.topk(count, dim=-1)
    logits_NV.scatter_(1, pieces_NK, -float("inf"))
    return values_NK, pieces_NK, logits_NV.div_(temperature).logsumexp(-1)


def top_softened_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    top: Top,
    temperature: float | Tensor,
    ops: ModuleType,
) -> tuple[Tensor, Tensor]:
    """Mean over rows of T² KL between the teacher's distribution under the tail rule and the student's.

    Args:
        student_hidden: `[N, E]`.
        student_weight: `[V, E]`.
        student_bias: `[V]` or None.
        top: the teacher's, constants; see `largest_logits`. Adding a number c to a row's logits and c / T to its tail
            changes nothing.
        temperature: a number or `[N]`: that at which `top`'s tails were summed.
        ops: `comet_kernels`, which holds a piece of the student's logits at a time and finds the gradients along with
            the loss, or its `reference`, which holds them whole.

    Returns:
        A scalar in float32, 0 where N = 0, and every row's KL `[N]` without T², a constant.
    """
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(float(temperature), device=student_hidden.device)
    temperature_N = temperature.detach().float().expand(len(student_hidden)).contiguous()
    top = top[0].float(), top[1], top[2].float()
    if ops is reference:
        kl_N = _plain_kl(linear(student_hidden, student_weight, student_bias), top, temperature_N)
        total = (temperature_N**2 * kl_N).sum()
    else:
        total, kl_N = _TopSoftenedKl.apply(
            student_hidden, student_weight, student_bias, *top, temperature_N
        )
    return total / max(len(kl_N), 1), kl_N.detach()


def _plain_kl(logits_NV: Tensor, top: Top, temperature_N: Tensor) -> Tensor:
    """KL of every row `[N]` in plain torch, with what autograd needs of it."""
    vocabulary = logits_NV.shape[1]
    logits_NV = logits_NV.float()
    scaled_NV = (logits_NV - logits_NV.detach().amax(-1, keepdim=True)) / temperature_N[:, None]
    precision = _precision(logits_NV.device)
    log_sum_N = scaled_NV.exp().sum(-1, dtype=precision).log()
    log_q_NK = scaled_NV.gather(1, top[1]) - log_sum_N[:, None]
    mean_N = scaled_NV.mean(-1, dtype=precision) - log_sum_N
    return _kl(log_q_NK, mean_N, vocabulary, _teacher(top, vocabulary, temperature_N))


def _precision(device: torch.device) -> torch.dtype:
    """Of logarithms near log V whose difference counts: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _teacher(top: Top, vocabulary: int, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    """log p `[N, K]` of the largest and log u `[N]` of each of the others, −∞ where there are none."""
    precision = _precision(temperature_N.device)
    values_NK, tail_N = top[0].to(precision), top[2].to(precision)
    scaled_NK = values_NK / temperature_N[:, None]
    log_sum_N = torch.logaddexp(scaled_NK.logsumexp(-1), tail_N)
    others = max(vocabulary - values_NK.shape[1], 1)
    return scaled_NK - log_sum_N[:, None], tail_N - log_sum_N - math.log(others)


def _kl(
    log_q_NK: Tensor,
    mean_log_q_N: Tensor,
    vocabulary: int,
    teacher: tuple[Tensor, Tensor],
) -> Tensor:
    """KL of every row `[N]` from the student's log q at the K pieces and its mean over all V; 0 at least."""
    log_p_NK, log_u_N = teacher
    others = vocabulary - log_q_NK.shape[1]
    p_NK = log_p_NK.exp()
    kl_N = torch.where(p_NK > 0, p_NK * (log_p_NK - log_q_NK), 0).sum(-1)
    if others:
        tail_log_q_N = (vocabulary * mean_log_q_N - log_q_NK.sum(-1)) / others
        u_N = log_u_N.exp()
        kl_N = kl_N + torch.where(u_N > 0, others * u_N * (log_u_N - tail_log_q_N), 0)
    return torch.where(kl_N < 0, kl_N - kl_N.detach(), kl_N).float()


class _TopSoftenedKl(torch.autograd.Function):
    """The sum of T² KL over rows, each row's KL, and the sum's gradients, computed along with it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        values_NK: Tensor,
        pieces_NK: Tensor,
        tail_N: Tensor,
        temperature_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        autocast = launch.autocast_dtype(hidden_NE.device)
        with launch.without_autocast(hidden_NE.device):
            student = linear_pieces.Side(hidden_NE, weight_VE, bias_V, autocast)
            kl_N, *gradients = _in_pieces(
                student, (values_NK, pieces_NK, tail_N), temperature_N, ctx.needs_input_grad[:3]
            )
        originals = (hidden_NE, weight_VE, bias_V)
        ctx.save_for_backward(
            *(
                gradient.to(original.dtype) if needed and original is not None else None
                for gradient, original, needed in zip(
                    gradients, originals, ctx.needs_input_grad[:3], strict=True
                )
            )
        )
        ctx.mark_non_differentiable(kl_N)
        return (temperature_N**2 * kl_N).sum(), kl_N

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if saved is None else (saved * incoming[0]).to(saved.dtype)
            for saved in ctx.saved_tensors
        )
        return (*gradients, None, None, None, None)


def _in_pieces(
    student: linear_pieces.Side, top: Top, temperature_N: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL of every row and, in float32, the gradients that are needed."""
    count, vocabulary = len(student.hidden), len(student.weight)
    log_p_NK, log_u_N = _teacher(top, vocabulary, temperature_N)
    others_N = -temperature_N * log_u_N.exp().float()  # what every column's gradient has beside T q
    weight_sum_E = student.weight.sum(0, dtype=torch.float32)
    mean_N = student.hidden.float() @ (weight_sum_E / vocabulary)
    if student.bias is not None:
        mean_N += student.bias.float().mean()
    enlarged = linear_pieces.enlargement(student.weight.dtype, temperature_N, None)
    gradients = linear_pieces.empty_gradients(student.hidden, student.weight, needs)
    if needs[1]:
        gradients[1].copy_(enlarged * (others_N @ student.hidden.float()))
    if needs[2]:
        gradients[2].copy_(enlarged * others_N.sum())
    kl_N = torch.empty_like(temperature_N)
    step = min(linear_pieces.rows_per_piece(count, student.row_bytes), max(count, 1))
    student.make_room(step)
    for start in range(0, count, step):
        piece = slice(start, min(start + step, count))
        rows_of = _Rows(student, piece, temperature_N[piece], top[1][piece])
        teacher = log_p_NK[piece], log_u_N[piece]
        kl_N[piece] = _kl(
            rows_of.top_log_q, rows_of.log_q(mean_N[piece, None])[:, 0], vocabulary, teacher
        )
        if not any(needs):
            continue
        slope_RV = rows_of.write_gradient(teacher, enlarged)
        if needs[0]:
            gradients[0][piece] = linear_pieces.product(slope_RV, student.weight)
            gradients[0][piece] += enlarged * others_N[piece, None] * weight_sum_E
        if needs[1]:
            linear_pieces.accumulate(gradients[1], slope_RV, student.hidden[piece])
        if needs[2]:
            gradients[2].add_(slope_RV.sum(0, dtype=torch.float32))
    if student.weight.dtype == torch.float16:
        for gradient in gradients:
            gradient /= enlarged
    return kl_N, *gradients


class _Rows:
    """A piece of the student's logits `[R, V]`, which their gradient takes the place of."""

    def __init__(
        self, student: linear_pieces.Side, piece: slice, temperature_R: Tensor, pieces_RK: Tensor
    ) -> None:
        self.temperature_R, self.pieces_RK = temperature_R, pieces_RK
        self.logits_RV = student.logits(piece)
        self.biases = (student.bias, None)
        # of an even teacher: the log-sum less log V is small where the student is nearly even, as at high temperatures
        even_RV = self.logits_RV.new_zeros(self.logits_RV.shape[1:]).expand_as(self.logits_RV)
        self.largest_R, difference_R = rows.forward(
            self.logits_RV, even_RV, temperature_R, None, self.biases
        )[1][:2]
        precise_R = difference_R.to(_precision(difference_R.device))
        self.log_sum_R = precise_R + math.log(self.logits_RV.shape[1])
        self.top_log_q = self.log_q(self._with_bias(pieces_RK))

    def log_q(self, some_RX: Tensor) -> Tensor:
        """Of logits with their bias; measured from a row's largest, so that large ones keep their digits."""
        scaled_RX = (some_RX - self.largest_R[:, None]) / self.temperature_R[:, None]
        return scaled_RX - self.log_sum_R[:, None]

    def write_gradient(self, teacher: tuple[Tensor, Tensor], enlarged: Tensor) -> Tensor:
        """`enlarged` times T (q − p + u) for the K pieces and T q for the others, over the logits."""
        log_p_RK, log_u_R = teacher
        scale_R = enlarged.expand_as(self.temperature_R).contiguous()
        scale_R1 = (scale_R * self.temperature_R)[:, None]
        first_R1 = (
            scale_R1 * self.log_q(self._with_bias(torch.zeros_like(self.pieces_RK[:, :1]))).exp()
        )
        # with all of a teacher's mass on the first piece, the kernel writes T q everywhere else
        first_V = self.logits_RV.new_full(self.logits_RV.shape[1:], -float("inf"))
        first_V[0] = 0
        nothing_R = torch.zeros_like(self.largest_R)
        rows.backward(
            self.logits_RV,
            first_V.expand_as(self.logits_RV),
            self.temperature_R,
            None,
            scale_R,
            torch.stack([self.largest_R, self.log_sum_R.float(), nothing_R, nothing_R]),
            self.logits_RV,
            self.biases,
        )
        self.logits_RV[:, :1] = first_R1
        slope_RK = scale_R1 * (self.top_log_q.exp() - log_p_RK.exp() + log_u_R.exp()[:, None])
        return self.logits_RV.scatter_(1, self.pieces_RK, slope_RK.to(self.logits_RV.dtype))

    def _with_bias(self, pieces_RX: Tensor) -> Tensor:
        logits_RX = self.logits_RV.gather(1, pieces_RX).float()
        bias_V = self.biases[0]
        return logits_RX if bias_V is None else logits_RX + bias_V.float()[pieces_RX]
