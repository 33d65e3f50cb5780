"""T, the temperature of the softened KL: one number for all tokens, or one for each.

    constant   T
    language   T of the token's language
    schedule   from T at the first step to T_end at the last, on a straight line
    adaptive   T + (T_end − T) · H_n / log V, by the entropy H_n of the teacher's distribution at the token
    learnt     one number between T and T_end, trained to make the KL large

A temperature is a constant to the student: no gradient flows through T, but for the learnt one's own.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from comet.batch import Batch
from comet.configuration import require
from comet.factored_logits import FactoredLogits, entropy
from comet.objective_recipe import ObjectiveRecipe, language_temperatures

SAMPLED_COLUMNS = (
    16  # a learnt temperature's gradient looks at every 16th column, at others in every step
)
CURRICULUM = (
    10 / 240
)  # share of the steps after which a learnt temperature's gradient has its full strength

FAR = 8.0  # logits that differ by more, over T, are not near each other: nothing cancels


class Temperature(nn.Module):
    """The temperature that a recipe asks for; trained if it is learnt, without parameters otherwise.

    Args:
        recipe: mode and temperatures.
        languages: the corpus's, in alphabetical order.

    Raises:
        ValueError: a temperature is given for a language that the corpus lacks.
    """

    by_language: Tensor

    def __init__(self, recipe: ObjectiveRecipe, languages: Sequence[str]) -> None:
        super().__init__()
        self.mode = recipe.temperature_mode
        self.start = recipe.temperature
        self.end = recipe.temperature if recipe.temperature_end is None else recipe.temperature_end
        self.set_progress(0, 1)
        if self.mode == "language":
            table = temperature_table(language_temperatures(recipe), languages, self.start)
            self.register_buffer("by_language", table, persistent=False)
        if self.mode == "learnt":
            self.raw = nn.Parameter(torch.zeros(()))

    def set_progress(self, step: int, steps: int) -> None:
        """Say that `step` of `steps` steps are done."""
        self.step, self.steps = step, steps

    def forward(self, batch: Batch, teacher: FactoredLogits) -> float | Tensor:
        """The temperature of the matched tokens: a number, or `[N]` float32 without gradient."""
        match self.mode:
            case "constant":
                return self.start
            case "schedule":
                return scheduled(self.start, self.end, self.step, self.steps)
            case "language":
                rows_N = batch.kd_positions // batch.input_ids.shape[1]
                return self.by_language[batch.languages[rows_N]]
            case "adaptive":
                return adapted(self.start, self.end, entropy(teacher), len(teacher.weight))
            case "learnt":
                return self.learnt().detach().expand(len(batch.kd_positions))

    def learnt(self) -> Tensor:
        """T + (T_end − T) · sigmoid(θ), a scalar with gradient to θ; halfway at the start, where θ = 0."""
        return self.start + (self.end - self.start) * self.raw.sigmoid()

    def adversary(self, batch: Batch, student: FactoredLogits, teacher: FactoredLogits) -> Tensor:
        """A scalar 0 whose gradient to θ is −λ · ∂(Σ_n T² KL_n)/∂θ, estimated: the temperature climbs where θ descends.

        Gradient reversal as in Curriculum Temperature (Li et al., AAAI 2023, arXiv 2211.16231), with λ = `strength`.
        The derivative by T is summed over the matched tokens of every 16th column, times 16: of other columns in
        every step, so that the estimate is right on average, and of columns rather than of so many tokens, so that
        it does not depend on how a step's batch is split.
        """
        temperature = self.learnt()
        value = temperature.detach()
        if not len(batch.kd_positions):
            return (temperature - value) * 0
        rows_G, matched_G = sampled_tokens(batch, self.step % SAMPLED_COLUMNS)
        slopes_G = temperature_slope(student.at(rows_G), teacher.at(rows_G), value)
        slope = torch.where(matched_G, slopes_G, 0).sum() * SAMPLED_COLUMNS
        return (temperature - value) * -strength(self.step, self.steps) * slope


def scheduled(start: float, end: float, step: int, steps: int) -> float:
    """T + (T_end − T) · step / (steps − 1): T at the first step, T_end at the last.

    Annealing distillation (Jafari et al., 2021, arXiv 2104.07163) goes down in steps, for the teacher's side alone.
    """
    return start + (end - start) * min(step / max(steps - 1, 1), 1.0)


def temperature_table(
    temperatures: Mapping[str, float], languages: Sequence[str], otherwise: float
) -> Tensor:
    """`[L]`: every language's temperature, `otherwise` where none is given.

    Raises:
        ValueError: one is given for a language that is not there.
    """
    for language in temperatures:
        require(
            language in languages,
            "objective.language_temperatures",
            language,
            f"languages of the corpus: {', '.join(languages)}",
        )
    return torch.tensor([temperatures.get(language, otherwise) for language in languages])


def adapted(certain: float, uncertain: float, entropy_N: Tensor, vocabulary: int) -> Tensor:
    """T_n = T + (T_end − T) · H_n / log V: T where the teacher is certain, T_end where it knows nothing.

    T_end < T follows token-adaptive distillation (Xie et al., 2025, arXiv 2510.11615), which softens easy tokens, whose
    distribution is else nearly one piece, and sharpens difficult ones; its measure of difficulty is the distance of
    student and teacher, here it is the teacher's entropy alone, so that the target does not move with the student.

    Args:
        certain: T.
        uncertain: T_end.
        entropy_N: `[N]`, H in nats.
        vocabulary: V.
    """
    return certain + (uncertain - certain) * (entropy_N / math.log(vocabulary)).clamp(0, 1)


def strength(step: int, steps: int) -> float:
    """λ = (1 − cos(π · min(step / (c · steps), 1))) / 2, from 0 to 1: easy first, then hard (Li et al., AAAI 2023).

    They reach 1 after 10 of 240 epochs: c = 10 / 240.
    """
    return (1 - math.cos(math.pi * min(step / max(CURRICULUM * steps, 1), 1))) / 2


def sampled_tokens(batch: Batch, first: int) -> tuple[Tensor, Tensor]:
    """For the tokens of every 16th column from `first`: `[G]`, their places among the matched ones; `[G]`, if they are.

    Sizes depend on the batch's shape alone, so nothing waits for the device. At least one token is matched.
    """
    sequences, length = batch.input_ids.shape
    positions_N = batch.kd_positions
    columns = torch.arange(length, device=positions_N.device)[first::SAMPLED_COLUMNS]
    starts = torch.arange(sequences, device=positions_N.device) * length
    wanted_G = (starts[:, None] + columns).flatten()
    places_G = torch.searchsorted(positions_N, wanted_G).clamp(max=len(positions_N) - 1)
    return places_G, positions_N[places_G] == wanted_G


@torch.no_grad()
def temperature_slope(
    student: FactoredLogits, teacher: FactoredLogits, temperature: Tensor
) -> Tensor:
    """∂( T² · KL(p ‖ q) ) / ∂T of every token `[N]`, where p = softmax(t / T) and q = softmax(s / T).

        2 T · KL − T · Σ_v [ (c_v − p_v e_v) a_v + c_v e_v ]

    with a = t/T and b = s/T, each less its mean under p, e = b − a and c = q − p: from ∂KL/∂(t/T)_v = −p_v e_v,
    ∂KL/∂(s/T)_v = c_v and ∂(t/T)/∂T = −t/T², where numbers that do not depend on v change nothing.

    Where the two are near, KL and the sum are of second order in e and their difference is of third. So nothing larger
    may be rounded: KL is log(1 + Σ_v p_v (exp(e_v) − 1 − e_v)), and c_v is p_v (exp(e_v − KL) − 1).

    Args:
        student: s.
        teacher: t.
        temperature: T, a scalar.
    """
    found = [student.hidden.new_zeros(0, dtype=torch.float32)]
    for piece in teacher.pieces(copies=10):
        a = teacher.at(piece).multiplied() / temperature
        b = student.at(piece).multiplied() / temperature
        p, q = a.softmax(-1), b.softmax(-1)
        a -= (p * a).sum(-1, keepdim=True)
        b -= (p * b).sum(-1, keepdim=True)
        e = b - a
        second_order = p * (e.expm1() - e)
        kl = torch.where(
            e.abs().amax(-1, keepdim=True) < FAR,
            second_order.sum(-1, keepdim=True).log1p(),
            b.logsumexp(-1, keepdim=True) - a.logsumexp(-1, keepdim=True),
        )
        c = torch.where(e.abs() < 1, p * (e - kl).expm1(), q - p)
        moved = ((c - p * e) * a + c * e).sum(-1)
        found.append(2 * temperature * kl[:, 0] - temperature * moved)
    return torch.cat(found)
