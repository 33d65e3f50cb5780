"""How closely a student follows its teacher on held-out text, per language.

Measured at temperature 1 on the tokens that were chosen for masking (all real tokens where nothing is masked): the
others are mostly copied from the input, which says little. Attention maps are compared as they are, without the
learnt projection: what counts is what the student does, and the projection is not shipped with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType

import torch
from accelerate import Accelerator

from comet.batch import Batch
from comet.objective import Distiller
from comet.projections import masked_mse
from comet.tap import TappedEncoder

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Agreement:
    """Averages over held-out text.

    Attributes:
        kl: KL(teacher ‖ student) per token, in nats.
        top1: share of tokens for which both models find the same piece most likely.
        attention_mse: mean squared difference of head-averaged attention maps over real pairs of tokens.
    """

    kl: float
    top1: float
    attention_mse: float


def measure(
    teacher: TappedEncoder,
    student: TappedEncoder,
    batches: Mapping[str, Sequence[Batch]],
    ops: ModuleType,
    accelerator: Accelerator,
) -> dict[str, Agreement]:
    """Compare two models on batches by language; the key `all` holds the mean over languages."""
    was_training = student.training
    student.eval()
    with torch.no_grad(), accelerator.autocast():
        found = {
            language: _measure_language(teacher, student, some, ops, accelerator.device)
            for language, some in batches.items()
        }
    student.train(was_training)
    rows = list(found.values())
    mean = {name: sum(getattr(row, name) for row in rows) / len(rows) for name in asdict(rows[0])}
    return {**found, "all": Agreement(**mean)}


def measure_distiller(
    distiller: Distiller, batches: Mapping[str, Sequence[Batch]], accelerator: Accelerator
) -> dict[str, Agreement]:
    """Compare the two models of a distiller."""
    return measure(distiller.teacher, distiller.student, batches, distiller.ops, accelerator)


def table(columns: Mapping[str, Mapping[str, Agreement]]) -> str:
    """A plain text table: languages down, one group of columns for each named measurement."""
    names = list(columns)
    languages = list(columns[names[0]])
    head = f"{'':>6}" + "".join(f" | {name:^31}" for name in names)
    units = f"{'':>6}" + f" | {'KL (nats)':>9} {'top-1':>7} {'attention':>13}" * len(names)
    lines = [head, units]
    for language in languages:
        cells = (columns[name][language] for name in names)
        lines.append(
            f"{language:>6}"
            + "".join(f" | {c.kl:9.4f} {c.top1:7.1%} {c.attention_mse:13.3e}" for c in cells)
        )
    return "\n".join(lines)


def _measure_language(
    teacher: TappedEncoder,
    student: TappedEncoder,
    batches: Sequence[Batch],
    ops: ModuleType,
    device: torch.device,
) -> Agreement:
    kl = agreeing = tokens = squares = pairs = 0.0
    for batch in batches:
        batch = batch.to(device)
        theirs, ours = (model(batch.input_ids, batch.mask) for model in (teacher, student))
        our_map, their_map = (
            ops.mean_attention(one.query, one.key, batch.mask, scale=one.scale)
            for one in (ours, theirs)
        )
        squares += masked_mse(our_map, their_map, batch.mask).item() * batch.squared_lengths
        pairs += batch.squared_lengths
        for positions in batch.kd_positions.split(ROWS_AT_ONCE):
            student_logits, teacher_logits = (
                model.logits(one.hidden.flatten(0, 1)[positions]).float()
                for model, one in ((student, ours), (teacher, theirs))
            )
            kl += ops.softened_kl(student_logits, teacher_logits, 1.0).item() * len(positions)
            agreeing += (student_logits.argmax(-1) == teacher_logits.argmax(-1)).sum().item()
            tokens += len(positions)
    return Agreement(kl / max(tokens, 1), agreeing / max(tokens, 1), squares / max(pairs, 1))
