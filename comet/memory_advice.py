"""What to lower when memory runs out, largest saver first, estimated from the shapes of a run.

Rough on purpose: the numbers that a step holds, on the plain path and the fused one. The counts are of the reference's
and transformers' own code with SDPA: of each layer that is trained, 8 numbers per token and hidden unit and 2 per unit
of the feed-forward layer stay (dropout's masks left out); a pass without gradient never holds more than 4 and 2 of one
layer; logits exist seven times over where both sides are compared, three times in plain cross-entropy; maps of every
head three times.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from comet.objective_recipe import ObjectiveRecipe
from comet.projections import trained_bytes
from comet.recipe import AdaptRecipe, DistillRecipe
from comet.students import count_parameters, size_name
from comet_kernels.ops.softened_kl.linear_pieces import LOGITS_BYTES

MIB, GIB = 1 << 20, 1 << 30
MOST_SAVERS = 5
_SIGNS = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class Shape:
    """What a model's memory follows from.

    Attributes:
        parameters: tied ones once.
        layers: how many.
        hidden_size: numbers per token between layers.
        intermediate_size: numbers per token within the feed-forward layer.
        heads: of attention.
    """

    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int


@dataclass(frozen=True)
class Sizes:
    """The models of a run, and over how many processes its steps are spread.

    Attributes:
        vocabulary: entries of the output embeddings.
        student: the model that is trained.
        teacher: that is read beside it; None where there is none in memory.
        processes: that share a step.
    """

    vocabulary: int
    student: Shape
    teacher: Shape | None = None
    processes: int = 1


@dataclass(frozen=True)
class _Step:
    """Estimated bytes of one piece of a step, as the recipe has it."""

    logits: int
    maps: int
    activations: int
    passing: int  # what the teacher's pass holds for a moment

    @property
    def total(self) -> int:
        return self.logits + self.maps + self.activations + self.passing


def sizes_of(
    student: PreTrainedModel, teacher: PreTrainedModel | None = None, processes: int = 1
) -> Sizes:
    """The sizes of loaded models."""
    return Sizes(
        student.config.vocab_size,
        _shape_of(student),
        None if teacher is None else _shape_of(teacher),
        processes,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in the words of torch, CUDA, Python or the system."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


@contextlib.contextmanager
def explained(remedy: Callable[[], str]) -> Iterator[None]:
    """Within this context, running out of memory ends with advice: what `remedy` then says, one line.

    Raises:
        ValueError: memory ran out; one line.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(remedy()) from error


def advice(recipe: DistillRecipe | AdaptRecipe, sizes: Sizes) -> str:
    """One line: the options that would save most memory, with rough savings, largest first.

    Args:
        recipe: the run's; what it has already is not advised.
        sizes: of its models.
    """
    savers = {what: saved for what, saved in _savers(recipe, sizes).items() if saved >= MIB}
    largest = sorted(savers, key=lambda what: -savers[what])[:MOST_SAVERS]
    listed = ", ".join(f"{_size(savers[what])} by {what}" for what in largest)
    return f"out of memory; roughly to be saved: {listed or 'nothing but by a smaller model'}"


def _savers(recipe: DistillRecipe | AdaptRecipe, sizes: Sizes) -> dict[str, int]:
    """Option → bytes it would save, alone."""
    step, optimisation = _step(recipe, sizes), recipe.optimisation
    found: dict[str, int] = {}
    if isinstance(recipe, DistillRecipe):
        found |= _of_objective(recipe.objective, recipe.corpus.max_length, step)
    sequences = _tokens(recipe, sizes) // recipe.corpus.max_length
    if sequences > 1:
        pieces = 2 * optimisation.accumulation
        what = f"--optimisation.accumulation {pieces} (same result) or half the batch size"
        found[what] = step.total // 2
    if optimisation.precision == "float32":
        found["--optimisation.precision bfloat16"] = (step.activations + step.passing) // 2
    if not optimisation.gradient_checkpointing:
        student = sizes.student
        kept = 1 / student.layers + student.hidden_size / _kept_per_token(student)
        saved = max(0, round(step.activations * (1 - kept)))
        found["--optimisation.gradient_checkpointing (same result)"] = saved
    if sizes.teacher is not None:
        head = 4 * sizes.vocabulary * sizes.teacher.hidden_size
        weights = max(0, 4 * sizes.teacher.parameters - head)
        found["--teacher-cache (see python -m comet.cache_teacher)"] = weights + step.passing
    found |= _of_length(recipe, step)
    if isinstance(recipe, DistillRecipe) and recipe.student.model is None:
        # weights, gradients and AdamW's two moments, of which embeddings are the most
        found["half the --student.hidden_size"] = trained_bytes(sizes.student.parameters) // 2
    return found


def _of_objective(recipe: ObjectiveRecipe, length: int, step: _Step) -> dict[str, int]:
    found = {}
    if not recipe.fused:
        found["--fused"] = max(0, step.logits - LOGITS_BYTES) + step.maps
    now = {"dense": length**4, "lowrank": 2 * recipe.projection_rank * length**2}
    if recipe.projection in now:
        kronecker = 2 * recipe.projection_terms * length**2
        saved = trained_bytes(now[recipe.projection]) - trained_bytes(kronecker)
        found["--objective.projection kronecker"] = saved
    return found


def _of_length(recipe: DistillRecipe | AdaptRecipe, step: _Step) -> dict[str, int]:
    """Half the length, of as many sequences: half of everything and another half of the maps."""
    length = recipe.corpus.max_length
    if length < 32:
        return {}
    saved = step.maps * 3 // 4
    if recipe.optimisation.batch_tokens is None:
        saved += (step.total - step.maps) // 2
    if isinstance(recipe, DistillRecipe) and recipe.objective.projection == "dense":
        saved += trained_bytes(length**4) * 15 // 16
    return {f"--corpus.max_length {length // 2}": saved}


def _step(recipe: DistillRecipe | AdaptRecipe, sizes: Sizes) -> _Step:
    tokens, length = _tokens(recipe, sizes), recipe.corpus.max_length
    width = 4 if recipe.optimisation.precision == "float32" else 2
    student, teacher = sizes.student, sizes.teacher
    kept = _kept_per_token(student) * student.layers
    if recipe.optimisation.gradient_checkpointing:
        kept = _kept_per_token(student) + student.hidden_size * student.layers
    passing = 0
    if teacher is not None:
        passing = width * tokens * (4 * teacher.hidden_size + 2 * teacher.intermediate_size)
    if isinstance(recipe, AdaptRecipe):
        masked = round(tokens * recipe.corpus.mask_probability)
        logits, maps = 3 * 4 * masked * sizes.vocabulary, 0
    elif recipe.objective.fused:
        logits, maps = 0, 0
    else:
        share = 1.0 if recipe.objective.kd_tokens == "all" else recipe.corpus.mask_probability
        logits = 7 * 4 * round(tokens * share) * sizes.vocabulary
        heads = max(student.heads, 0 if teacher is None else teacher.heads)
        maps = 3 * 4 * tokens * length * heads
    return _Step(logits, maps, width * tokens * kept, passing)


def _tokens(recipe: DistillRecipe | AdaptRecipe, sizes: Sizes) -> int:
    """That one process reads at once."""
    optimisation = recipe.optimisation
    parts = optimisation.accumulation * sizes.processes
    if optimisation.batch_tokens is not None:
        return -(-optimisation.batch_tokens // parts)
    return -(-optimisation.batch_size // parts) * recipe.corpus.max_length


def _kept_per_token(shape: Shape) -> int:
    return 8 * shape.hidden_size + 2 * shape.intermediate_size


def _shape_of(model: PreTrainedModel) -> Shape:
    config = model.config
    return Shape(
        count_parameters(model),
        config.num_hidden_layers,
        config.hidden_size,
        getattr(config, size_name(config, "intermediate_size"), 4 * config.hidden_size),
        config.num_attention_heads,
    )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:,.0f} MiB"
