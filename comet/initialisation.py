"""A student's first weights from its teacher's: chosen layers, heads and neurons, in a smaller space.

The residual stream of hidden size d is reduced to d' by one matrix P [d, d'] of orthonormal columns, for all layers,
as SliceGPT does (Ashkboos et al., 2024, arXiv 2401.15024): h' = Pᵀh. What reads the stream becomes W P, what writes it
PᵀW, embeddings E P. P holds the principal directions of the stream on some text, and always the direction of ones,
which goes to the direction of ones: both LayerNorms then subtract the same mean. What that leaves inexact is made up
for by least squares on the same text: readers and writers are refitted on what was kept (`refit`), and

- where the stream itself is normalised (post-LN: BERT, XLM-R, and all embeddings), scale and shift of each coordinate
  are those that bring it nearest to Pᵀ(γ ∘ n + β), n the normalised stream;
- where a layer normalises what it reads (pre-LN: ModernBERT), the readers take γ and β over, and the student's norm has
  one scale, by which its output is Pᵀn;
- the head's dense layer lies between a nonlinearity and tied embeddings, so that it cannot be rotated: it becomes the
  best linear map to what the output embeddings should read, kept small, where GELU is half its input, as the norm
  after it makes up for any scale.

Query-key and value-output products of each head become the best ones of the smaller rank (`comet.reduction`). Nothing
is approximated where nothing is smaller: with the teacher's sizes the student is the teacher, with fewer layers the
teacher of those layers.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from comet.anatomy import Affine, Anatomy, Layer, anatomy_of
from comet.batch import Batch
from comet.moments import Moments, measure_moments
from comet.reduction import (
    ROWS,
    Fit,
    basis_of,
    gram,
    reduced_product,
    reduced_writer,
    refit,
    rotary_product,
    second,
    through,
)
from comet.student_recipe import StudentRecipe
from comet.students import (
    Start,
    chosen_layers,
    make_student,
    outline_of,
    require_smaller,
    settled,
    student_config,
)
from comet.tap import require_positions

_HEAD_DEVIATION = 0.1  # of what the student's head puts through GELU


def make_started(
    teacher: PreTrainedConfig,
    recipe: StudentRecipe,
    load_teacher: Callable[[], PreTrainedModel],
    batches: Callable[[], Iterable[Batch]],
    max_length: int,
) -> tuple[PreTrainedModel, Start]:
    """A student with the first weights that its recipe asks for; of "auto", with those that can be had.

    Args:
        teacher: its configuration.
        recipe: of the student.
        load_teacher: gives it in float32 on the CPU, if its weights are needed.
        batches: give text of the kind that will be trained on, likewise.
        max_length: of that text, in tokens.

    Raises:
        ValueError: a student that cannot start from such a teacher, or from one whose weights are not there; one that
            is no smaller; text that is longer than the positions of either.
    """
    start = checked_start(teacher, recipe, max_length)
    if recipe.model is not None:
        student = make_student(teacher, recipe)
        _require_fit(teacher, student, start, max_length)
        return student, start
    if start.recipe.initial == "random":
        return make_student(teacher, start.recipe), start
    try:
        weights = load_teacher()
    except ValueError as error:
        if recipe.initial != "auto":
            raise
        start = Start(replace(start.recipe, initial="random"), str(error))
        return make_student(teacher, start.recipe), start
    student = make_student(teacher, start.recipe)
    start_from_teacher(student, weights, start.recipe, batches())
    return student, start


def checked_start(teacher: PreTrainedConfig, recipe: StudentRecipe, max_length: int) -> Start:
    """How a student starts, checked as far as its teacher's configuration tells; no weights are read.

    Raises:
        ValueError: as `make_started`.
    """
    start = settled(teacher, recipe)
    require_positions(outline_of(teacher), max_length, "corpus.max_length", "the teacher")
    if recipe.model is None:
        _require_fit(teacher, outline_of(student_config(teacher, start.recipe)), start, max_length)
    return start


def _require_fit(
    teacher: PreTrainedConfig, student: PreTrainedModel, start: Start, max_length: int
) -> None:
    require_positions(student, max_length, "corpus.max_length", "the student")
    require_smaller(teacher, student, start.recipe)


def start_from_teacher(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    recipe: StudentRecipe,
    batches: Iterable[Batch],
) -> None:
    """Overwrite a student's weights.

    Args:
        student: of `comet.students.make_student` for this teacher and recipe, on the CPU.
        teacher: in float32, on the CPU.
        recipe: `initial`, which is "embeddings" or "teacher", and what belongs to it.
        batches: text of the kind that will be trained on; a few thousand tokens of it are read.

    """
    layers = chosen_layers(teacher.config, recipe) if recipe.initial == "teacher" else ()
    theirs = anatomy_of(teacher)
    moments = measure_moments(teacher, theirs, layers, batches)
    with torch.no_grad():
        start = _Start(anatomy_of(student), theirs, moments, layers)
        if recipe.initial == "embeddings":
            start.embeddings()
        else:
            start.everything()


class _Source(NamedTuple):
    """What a layer's matrices read: the teacher's `scale ∘ x + shift`, the student's `factor · Pᵀx`."""

    moment: Tensor
    scale: Tensor
    shift: Tensor
    factor: float = 1.0


class _Start:
    """Writes the student's weights.

    Args:
        ours: the student.
        theirs: the teacher.
        moments: of the teacher.
        layers: of the teacher, for those of the student in order.
    """

    def __init__(
        self, ours: Anatomy, theirs: Anatomy, moments: Moments, layers: tuple[int, ...]
    ) -> None:
        self.ours, self.theirs, self.moments, self.layers = ours, theirs, moments, layers

    def embeddings(self) -> None:
        """Tokens, positions and types, and the output's bias: principal directions of the tokens as they occur."""
        spread = gram(self.theirs.tokens, self.moments.counts)
        self.table = basis_of(spread, self.ours.tokens.shape[1])
        self._tables()

    def everything(self) -> None:
        """All weights."""
        ours, moments = self.ours, self.moments
        self.stream = basis_of(self._stream_moment(), ours.width)
        self.table = self.stream
        if ours.project is not None:
            self.table = basis_of(second(moments.embedding), ours.tokens.shape[1])
        elif self.theirs.project is not None:
            self.table = self._table_of(self.theirs.project)
        self._tables()
        self._embedding_norm()
        for layer, number in zip(ours.layers, self.layers, strict=True):
            source = self.theirs.layers[number]
            self._attention(layer, source, number)
            self._feed_forward(layer, source, number)
        if ours.final_norm is not None and moments.final is not None:
            _set_norm(ours.final_norm, self._scale_of(moments.final, self.stream))
        self._head()

    def _stream_moment(self) -> Tensor:
        """The sum of the stream's second moments wherever it is read, each of the same trace."""
        moments, theirs = self.moments, self.theirs
        found = list(moments.inputs.values())
        if theirs.pre_norm:
            found += [*moments.attention.values(), *moments.mlp.values()]
            found += [] if moments.final is None else [moments.final]
        else:
            for number in self.layers:
                layer = theirs.layers[number]
                assert layer.attention_norm is not None
                found.append(_after(layer.attention_norm, moments.attention[number]))
                found.append(_after(layer.mlp_norm, moments.mlp[number]))
        seconds = [second(one) for one in found]
        return torch.stack([one / one.trace() for one in seconds]).sum(0)

    def _table_of(self, project: Affine) -> Tensor:
        """`[E, E']`, orthonormal, of a student that reads its embeddings as they are, where its teacher projects them.

        Nearest to what the teacher's projection makes of them in the stream, but for scales: tied output embeddings
        suffer from those. Ones go to ones.
        """
        scale, _ = _affine_of(self.theirs.embedding_norm)
        maps = (self.stream.T @ (project.weight.double() * scale)).T
        maps = maps - maps.mean(0) - maps.mean(1, keepdim=True) + maps.mean()
        left, _, right = torch.linalg.svd(
            maps / maps.norm() + maps.numel() ** -0.5, full_matrices=False
        )
        return left @ right

    def _tables(self) -> None:
        ours, theirs = self.ours, self.theirs
        for rows, of in zip(ours.tokens.split(ROWS), theirs.tokens.split(ROWS), strict=True):
            rows.copy_(of.double() @ self.table)
        if ours.positions is not None and theirs.positions is not None:
            ours.positions.copy_(theirs.positions[: len(ours.positions)].double() @ self.table)
        if ours.types is not None and theirs.types is not None:
            ours.types.copy_(theirs.types[: len(ours.types)].double() @ self.table)
        if ours.bias is not None and theirs.bias is not None:
            ours.bias.copy_(theirs.bias)

    def _embedding_norm(self) -> None:
        ours, theirs, moment = self.ours, self.theirs, self.moments.embedding
        scale, shift = _affine_of(theirs.embedding_norm)
        target = torch.diag(scale)
        if theirs.project is not None:
            target, shift = theirs.project.weight * scale, _applied(theirs.project, shift)
        target, shift = self.stream.T @ target, self.stream.T @ shift
        if ours.project is None:
            read = self.table - self.table.mean(1, keepdim=True)  # the norm takes away the mean
            self._nearest_norm(ours.embedding_norm, target, shift, read, moment)
            return
        _set_norm(ours.embedding_norm, self._scale_of(moment, self.table))
        found = refit(target, target @ self.table, self.table.T, moment, intercept=True)
        ours.project.write(found.weight, found.bias + shift)

    def _stream_norm(self, ours: nn.LayerNorm, theirs: nn.LayerNorm, moment: Tensor) -> None:
        """Scale and shift of each coordinate, so that it is nearest to that of Pᵀ(γ ∘ n + β)."""
        scale, shift = _affine_of(theirs)
        basis = self.stream
        self._nearest_norm(ours, basis.T * scale, basis.T @ shift, basis, moment)

    def _nearest_norm(
        self, ours: nn.LayerNorm, target: Tensor, shift: Tensor, basis: Tensor, moment: Tensor
    ) -> None:
        """Scale and shift of each coordinate of `basisᵀn`, so that it is nearest to that of `target n + shift`."""
        spread = second(moment, centred=ours.bias is not None)
        own = (basis.T @ spread @ basis).diagonal()
        slope = (target @ spread @ basis).diagonal() / own.clamp_min(1e-30)
        mean = moment[:-1, -1]
        offset = target @ mean + shift - slope * (basis.T @ mean)
        _set_norm(ours, slope * self._scale_of(moment, basis), offset)

    def _scale_of(self, moment: Tensor, basis: Tensor) -> float:
        """What the student's normalised stream is multiplied by to be Pᵀ of the teacher's, n."""
        spread = second(moment)
        kept = (basis.T @ spread @ basis).trace() / spread.trace()
        return float((kept * len(basis) / basis.shape[1]).sqrt())

    def _attention_source(self, ours: Layer, theirs: Layer, number: int) -> _Source:
        if not self.theirs.pre_norm or theirs.attention_norm is None:
            return _plain(self.moments.inputs[number])
        moment = self.moments.attention[number]
        source = _Source(moment, *_affine_of(theirs.attention_norm))
        if ours.attention_norm is not None:
            _set_norm(ours.attention_norm, self._scale_of(moment, self.stream))
            return source
        # the first layer reads the embeddings as they are: of another size than what it was normalised to
        embedded = second(_after(self.theirs.embedding_norm, self.moments.embedding)).trace()
        return source._replace(factor=float((second(moment).trace() / embedded).sqrt()))

    def _attention(self, ours: Layer, theirs: Layer, number: int) -> None:
        source = self._attention_source(ours, theirs, number)
        if not self.theirs.pre_norm:
            assert ours.attention_norm is not None
            assert theirs.attention_norm is not None
            self._stream_norm(
                ours.attention_norm, theirs.attention_norm, self.moments.attention[number]
            )
        given = self.moments.output[number]
        intercept = ours.output.bias is not None
        written = self.stream.T @ theirs.output.weight.double()
        spread = second(given, centred=intercept)
        wide = len(theirs.query.weight) // self.theirs.heads
        narrow = len(ours.query.weight) // self.ours.heads
        blocks = [slice(n * wide, (n + 1) * wide) for n in range(self.theirs.heads)]
        weights = torch.stack(
            [(written[:, at] @ spread[at, at] @ written[:, at].T).trace() for at in blocks]
        )
        heads = sorted(weights.topk(self.ours.heads).indices.tolist())
        kept = torch.zeros(len(ours.value.weight), len(spread), dtype=spread.dtype)
        start = torch.zeros(len(written), len(kept), dtype=spread.dtype)
        readers = [self._read(one, source) for one in (theirs.query, theirs.key, theirs.value)]
        for place, head in enumerate(heads):
            at, own = blocks[head], slice(place * narrow, (place + 1) * narrow)
            queries, keys = self._product(theirs, source, at, number, narrow)
            values, start[:, own] = _writer(written[:, at], spread[at, at], narrow)
            kept[own, at] = values
            parts = (ours.query, ours.key, ours.value)
            for part, fit, maps in zip(parts, readers, (queries, keys, values), strict=True):
                _slice(part, own).write(maps @ fit.weight[at], maps @ fit.bias[at])
        found = refit(written, start, kept, given, intercept=intercept)
        ours.output.write(found.weight, found.bias + self._bias(theirs.output))

    def _product(
        self, theirs: Layer, source: _Source, at: slice, number: int, narrow: int
    ) -> tuple[Tensor, Tensor]:
        """Maps `[narrow, wide]` of a head's queries and keys, so that attention scores stay as they are."""
        wide = at.stop - at.start
        if narrow == wide:
            eye = torch.eye(wide, dtype=torch.float64)
            return eye, eye
        query, key = (
            through(source.moment, one.weight * source.scale, _applied(one, source.shift))
            for one in (_slice(theirs.query, at), _slice(theirs.key, at))
        )
        if self.ours.frequencies is None or self.theirs.frequencies is None:
            # what all keys have in common changes no softmax
            found = reduced_product(second(query), second(key, centred=True), narrow)
        else:
            own = self.ours.frequencies[self.layers.index(number)]
            found = rotary_product(second(query), second(key), own, self.theirs.frequencies[number])
        scale = (narrow / wide) ** 0.25  # scores are divided by the root of the width
        return found[0] * scale, found[1] * scale

    def _feed_forward(self, ours: Layer, theirs: Layer, number: int) -> None:
        if self.theirs.pre_norm:
            moment = self.moments.mlp[number]
            source = _Source(moment, *_affine_of(theirs.mlp_norm))
            _set_norm(ours.mlp_norm, self._scale_of(moment, self.stream))
        else:
            assert theirs.attention_norm is not None
            source = _plain(_after(theirs.attention_norm, self.moments.attention[number]))
            self._stream_norm(ours.mlp_norm, theirs.mlp_norm, self.moments.mlp[number])
        given = self.moments.down[number]
        intercept = ours.down.bias is not None
        written = self.stream.T @ theirs.down.weight.double()
        weights = second(given, centred=intercept).diagonal() * written.square().sum(0)
        neurons = weights.topk(ours.down.weight.shape[1]).indices.sort().values
        for part, whole in zip(ours.up, theirs.up, strict=True):
            fit = self._read(whole, source)
            part.write(fit.weight[neurons], fit.bias[neurons])
        kept = torch.eye(len(weights), dtype=written.dtype)[neurons]
        found = refit(written, written[:, neurons], kept, given, intercept=intercept)
        ours.down.write(found.weight, found.bias + self._bias(theirs.down))

    def _read(self, part: Affine, source: _Source) -> Fit:
        """What reads the student's stream as `part` reads the teacher's."""
        target = part.weight * source.scale
        has_bias = part.bias is not None
        found = refit(
            target, target @ self.stream, self.stream.T, source.moment, intercept=has_bias
        )
        return Fit(found.weight * source.factor, found.bias + _applied(part, source.shift))

    def _bias(self, part: Affine) -> Tensor:
        return self.stream.T @ _applied(part, torch.zeros(part.weight.shape[1]).double())

    def _head(self) -> None:
        ours, theirs = self.ours, self.theirs
        before = theirs.final_norm
        width = self.theirs.width
        scale, shift = (
            (torch.ones(width).double(), torch.zeros(width).double())
            if before is None
            else _affine_of(before)
        )
        after = _affine_of(theirs.head_norm)
        if ours.head.weight.shape == theirs.head.weight.shape:
            ours.head.write(theirs.head.weight * scale, _applied(theirs.head, shift))
            _set_norm(ours.head_norm, *after)
            return
        whole, narrow = len(after[0]), len(ours.head.weight)
        eye = torch.eye(whole, dtype=torch.float64)
        joint = through(
            self.moments.head,
            torch.block_diag(torch.diag(1 / scale), eye),
            torch.cat([-shift / scale, torch.zeros(whole)]),
        )
        wanted = self._wanted_outputs()
        target = torch.cat([torch.zeros(narrow, width).double(), wanted * after[0]], 1)
        kept = torch.cat([self.stream.T, torch.zeros(ours.width, whole).double()], 1)
        nothing = torch.zeros(narrow, ours.width).double()
        found = refit(target, nothing, kept, joint, intercept=ours.head.bias is not None)
        given = second(through(joint, found.weight @ kept, found.bias))
        size = float((given.trace() / narrow - given.mean()).sqrt())
        small = _HEAD_DEVIATION / size
        ours.head.write(found.weight * small, found.bias * small)
        _set_norm(ours.head_norm, size, wanted @ after[1])

    def _wanted_outputs(self) -> Tensor:
        """`[E', E]`: from what the teacher's output embeddings read to what makes the student's nearest to them.

        Logits E u + b are to be E P u', but for what is the same for all entries, which no softmax sees.
        """
        tokens = self.theirs.tokens
        total = torch.stack([some.double().sum(0) for some in tokens.split(ROWS)]).sum(0)
        spread = gram(tokens) - torch.outer(total, total) / len(tokens)
        kept = self.table.T @ spread
        return torch.linalg.lstsq(kept @ self.table, kept).solution


def _plain(moment: Tensor) -> _Source:
    size = len(moment) - 1
    return _Source(moment, torch.ones(size).double(), torch.zeros(size).double())


def _affine_of(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double()
    return scale, torch.zeros_like(scale) if norm.bias is None else norm.bias.double()


def _after(norm: nn.LayerNorm, moment: Tensor) -> Tensor:
    """The moment of a norm's output."""
    scale, shift = _affine_of(norm)
    return through(moment, torch.diag(scale), shift)


def _set_norm(norm: nn.LayerNorm, scale: float | Tensor, shift: Tensor | float = 0.0) -> None:
    norm.weight.copy_(torch.as_tensor(scale).expand_as(norm.weight))
    if norm.bias is not None:
        norm.bias.copy_(torch.as_tensor(shift).expand_as(norm.bias))


def _applied(part: Affine, x: Tensor) -> Tensor:
    """`[out]` float64."""
    found = part.weight.double() @ x.double()
    return found if part.bias is None else found + part.bias.double()


def _slice(part: Affine, rows: slice) -> Affine:
    return Affine(part.weight[rows], None if part.bias is None else part.bias[rows])


def _writer(output: Tensor, inputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`reduced_writer`, which leaves alone what stays as large as it is."""
    if size == len(inputs):
        return torch.eye(size, dtype=inputs.dtype), output
    return reduced_writer(output, inputs, size)
