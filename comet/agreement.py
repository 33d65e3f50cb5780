"""How closely a student follows its teacher on held-out text, per language.

Measured at temperature 1 on the tokens that were chosen for masking (all real tokens where nothing is masked): the
others are mostly copied from the input, which says little. Attention maps are compared as they are, without the
learnt projection: what counts is what the student does, and the projection is not shipped with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import ModuleType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from comet.batch import Batch, TeacherOutputs
from comet.objective import Distiller
from comet.projections import masked_mse
from comet.tap import TappedEncoder
from comet.teachers import OnlineTeacher, Teacher
from comet.top_logits import top_softened_kl

ROWS_AT_ONCE = 256
_MOST_NATS = 700.0  # exp of more is no float64


@dataclass(frozen=True)
class Agreement:
    """Averages over held-out text.

    Attributes:
        kl: KL(teacher ‖ student) per token, in nats.
        top1: share of tokens for which both models find the same piece most likely.
        attention_mse: mean squared difference of head-averaged attention maps over real pairs of tokens; None where
            the teacher gives no map.
        pseudo_perplexity: of the student alone: exp of the mean negative log probability it gives to the original
            pieces at the masked tokens; None where nothing is masked. Salazar et al. (2020, arXiv 1910.14659) mask one
            token at a time, so that a model sees all others; here a sequence is read once with all its masked tokens
            hidden together (of the chosen ones 10 % stay visible and 10 % are another piece, as in training). That is
            cheaper by the number of tokens and gives other values: compare only what read the same masked text.
    """

    kl: float
    top1: float
    attention_mse: float | None
    pseudo_perplexity: float | None = None


def measure(
    teacher: Teacher,
    student: TappedEncoder,
    batches: Mapping[str, Sequence[Batch]],
    ops: ModuleType,
    accelerator: Accelerator,
    temperature: float = 1.0,
) -> dict[str, Agreement]:
    """Compare a student with its teacher on batches by language.

    Every process calls this with all batches and measures a share of them; all get the same numbers.

    Args:
        teacher: a model, or a cache of what one said.
        student: left in the mode it is in.
        batches: whole, by language.
        ops: `comet_kernels` or `comet_kernels.reference`.
        accelerator: device, precision and processes.
        temperature: where the teacher gives its largest logits alone, the one their tail was summed at: the KL is then
            measured at that temperature, as it cannot be had at another.

    Returns:
        By language; the key `all` holds the mean over languages, for the pseudo-perplexity the geometric one.
    """
    if isinstance(teacher, OnlineTeacher):
        teacher = OnlineTeacher(teacher.encoder, ops)  # says all it can, whatever a loss asks of it
    was_training = student.training
    student.eval()
    totals_LK = torch.zeros(len(batches), len(_Sums._fields), dtype=torch.float64)
    pieces = [(row, batch) for row, some in enumerate(batches.values()) for batch in some]
    with torch.no_grad(), accelerator.autocast():
        for row, batch in pieces[accelerator.process_index :: accelerator.num_processes]:
            sums = _sums(teacher, student, batch.to(accelerator.device), ops, temperature)
            totals_LK[row] += torch.tensor(sums, dtype=torch.float64)
    student.train(was_training)
    if accelerator.num_processes > 1:
        totals_LK = accelerator.reduce(totals_LK.to(accelerator.device), reduction="sum")
    rows = [_averages(_Sums(*values)) for values in totals_LK.tolist()]
    return {**dict(zip(batches, rows, strict=True)), "all": _mean(rows)}


def measure_distiller(
    distiller: Distiller, batches: Mapping[str, Sequence[Batch]], accelerator: Accelerator
) -> dict[str, Agreement]:
    """Compare the student of a distiller with its teacher."""
    return measure(
        distiller.teacher,
        distiller.student,
        batches,
        distiller.ops,
        accelerator,
        distiller.recipe.temperature,
    )


def table(columns: Mapping[str, Mapping[str, Agreement]]) -> str:
    """A plain text table: languages down, one group of columns for each named measurement."""
    names = list(columns)
    languages = list(columns[names[0]])
    head = f"{'':>6}" + "".join(f" | {name:^38}" for name in names)
    units = (
        f"{'':>6}"
        + f" | {'KL (nats)':>9} {'top-1':>6} {'attention':>9} {'pseudo-ppl':>11}" * len(names)
    )
    lines = [head, units]
    for language in languages:
        cells = "".join(f" | {_cells(columns[name][language])}" for name in names)
        lines.append(f"{language:>6}{cells}")
    return "\n".join(lines)


def _cells(row: Agreement) -> str:
    attention = "-" if row.attention_mse is None else f"{row.attention_mse:.2e}"
    perplexity = "-"
    if row.pseudo_perplexity is not None:
        is_short = row.pseudo_perplexity < 1e8
        perplexity = f"{row.pseudo_perplexity:,.1f}" if is_short else f"{row.pseudo_perplexity:.3e}"
    return f"{row.kl:9.4f} {row.top1:6.1%} {attention:>9} {perplexity:>11}"


class _Sums(NamedTuple):
    """Sums over tokens or pairs of tokens, each followed by what it is to be divided by."""

    kl: float
    agreeing: float
    matched: float
    squares: float
    pairs: float
    surprise: float
    masked: float


def _sums(
    teacher: Teacher, student: TappedEncoder, batch: Batch, ops: ModuleType, temperature: float
) -> _Sums:
    """Compare the two on one batch; the device is waited for once."""
    ours, theirs = student(batch.input_ids, batch.mask), teacher.read(batch)
    squares, pairs = torch.zeros((), device=batch.input_ids.device), 0
    if theirs.attention_map is not None:
        our_map = ops.mean_attention(ours.query, ours.key, batch.mask, scale=ours.scale)
        pairs = batch.squared_lengths
        squares = masked_mse(our_map, theirs.attention_map, batch.mask) * pairs
    hidden_NE = ours.hidden.flatten(0, 1).index_select(0, batch.kd_positions)
    labels_N = batch.labels.flatten().index_select(0, batch.kd_positions)
    found = [
        _of_rows(
            teacher, student, hidden_NE[rows], labels_N[rows], _rows(theirs, rows), ops, temperature
        )
        for rows in _pieces(len(hidden_NE))
    ]
    of_tokens = torch.stack(found).cpu().double().sum(0) if found else torch.zeros(4)
    kl, agreeing, surprise, masked = of_tokens.tolist()
    return _Sums(kl, agreeing, len(hidden_NE), squares.item(), pairs, surprise, masked)


def _of_rows(
    teacher: Teacher,
    student: TappedEncoder,
    hidden_NE: Tensor,
    labels_N: Tensor,
    theirs: TeacherOutputs,
    ops: ModuleType,
    temperature: float,
) -> Tensor:
    """KL, agreeing tokens, negative log probability of the labels, and how many there are: four sums over few rows."""
    logits_NV = student.logits(hidden_NE).float()
    if theirs.top is None:
        assert theirs.hidden is not None
        logits_of_teacher_NV = linear(theirs.hidden, teacher.output_weight, teacher.output_bias)
        kl_N = ops.softened_kl(logits_NV, logits_of_teacher_NV.float(), 1.0, return_kl=True)[1]
        likeliest_N = logits_of_teacher_NV.argmax(-1)
    else:
        weight, bias = student.output_weight, student.output_bias
        kl_N = top_softened_kl(hidden_NE, weight, bias, theirs.top, temperature, ops)[1]
        values_NK, pieces_NK, _ = theirs.top
        likeliest_N = pieces_NK.gather(1, values_NK.argmax(-1, keepdim=True))[:, 0]
    agreeing = logits_NV.argmax(-1) == likeliest_N
    surprise = cross_entropy(logits_NV, labels_N, reduction="sum")  # which leaves out −100
    masked = labels_N >= 0
    return torch.stack([kl_N.sum(), agreeing.sum(), surprise, masked.sum()])


def _pieces(count: int) -> list[slice]:
    """So few rows at once that their logits are small beside the models."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def _rows(outputs: TeacherOutputs, rows: slice) -> TeacherOutputs:
    hidden, top = outputs.hidden, outputs.top
    return TeacherOutputs(
        hidden=None if hidden is None else hidden[rows],
        top=None if top is None else (top[0][rows], top[1][rows], top[2][rows]),
    )


def _averages(sums: _Sums) -> Agreement:
    return Agreement(
        kl=sums.kl / max(sums.matched, 1),
        top1=sums.agreeing / max(sums.matched, 1),
        attention_mse=sums.squares / sums.pairs if sums.pairs else None,
        pseudo_perplexity=_perplexity(sums.surprise / sums.masked) if sums.masked else None,
    )


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def _mean(rows: Sequence[Agreement]) -> Agreement:
    squares = [row.attention_mse for row in rows if row.attention_mse is not None]
    nats = [math.log(row.pseudo_perplexity) for row in rows if row.pseudo_perplexity is not None]
    return Agreement(
        kl=fmean(row.kl for row in rows),
        top1=fmean(row.top1 for row in rows),
        attention_mse=fmean(squares) if squares else None,
        pseudo_perplexity=_perplexity(fmean(nats)) if nats else None,
    )
