"""What a distillation reads: the teacher and the text, now; or a cache of what the teacher said to the text before."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Protocol

from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from comet.batch import Batch
from comet.batches import Masking, StepBatches, held_out, open_text
from comet.cache_files import fingerprint_of_weights
from comet.corpus import Corpus
from comet.coverage import Coverage, coverage, coverage_table
from comet.frozen import round_weights
from comet.inputs import Input, model_inputs, text_input
from comet.processes import copy_of, on_main
from comet.recipe import DistillRecipe
from comet.students import count_parameters, load_masked_lm, load_tokenizer, require_embedded
from comet.tap import TappedEncoder
from comet.teacher_cache import CachedBatches, TeacherCache
from comet.teachers import OnlineTeacher, Teacher, needed_parts
from comet.training import Batches
from comet.trimmed_teacher import describe_trimmed, teacher_of


class ClosedBatches(Batches, Protocol):
    """Batches whose background processes can be ended."""

    def close(self) -> None:
        """End them."""


@dataclass(frozen=True)
class Sources:
    """What a run reads.

    Attributes:
        teacher: reads batches, or hands on what it said to them.
        config: the teacher's configuration.
        model: the teacher itself, None where a cache stands in for it.
        tokenizer: the teacher's.
        languages: of the text, in alphabetical order.
        batches: training steps.
        held_out: evaluation batches by language.
        coverage: how the tokenizer cuts each language; empty where the text is not at hand.
        description: lines for the start of a run.
        load_teacher: gives the teacher as it was saved, on the CPU, in float32.
        first_batches: gives the first batches of training again, for what looks at the text before it.
        inputs: gives what tells them from others, which may take seconds.
        facts: for run.json.
        conclusion: a line for the end of a run that trained at so many tokens per second; None where there is nothing
            to add.
    """

    teacher: Teacher
    config: PreTrainedConfig
    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerFast
    languages: tuple[str, ...]
    batches: ClosedBatches
    held_out: Mapping[str, Sequence[Batch]]
    coverage: Mapping[str, Coverage]
    description: str
    load_teacher: Callable[[], PreTrainedModel]
    first_batches: Callable[[], Iterator[Batch]]
    inputs: Callable[[], dict[str, Input]]
    facts: Mapping[str, Any]
    conclusion: Callable[[float], str] | None = None


def online_sources(
    recipe: DistillRecipe, teacher_name: str, ops: ModuleType, accelerator: Accelerator
) -> Sources:
    """The teacher that `teacher_name` names, and the recipe's text.

    Raises:
        ValueError: one of them cannot be had, or the teacher's tokenizer is not its own.
    """
    corpus = open_text(recipe.corpus, recipe.run.seed)
    name, revision = on_main(lambda: teacher_of(recipe, teacher_name, corpus))
    name = copy_of(name)
    model = load_masked_lm(name, revision=revision)
    tokenizer = load_tokenizer(name, revision=revision)
    require_embedded(tokenizer, model.config, flag="--teacher")
    masking = Masking(
        tokenizer, recipe.corpus.mask_probability, recipe.objective.kd_tokens, recipe.run.seed
    )
    encoder = TappedEncoder(model, recipe.teacher.attention_layer)
    round_weights(encoder, recipe.optimisation.precision, accelerator.device)
    if recipe.optimisation.compile:
        encoder.compile(dynamic=True)
    covered = {
        language: coverage(tokenizer, texts) for language, texts in corpus.held_out().items()
    }
    return Sources(
        teacher=OnlineTeacher(encoder, ops, needed_parts(recipe.objective)),
        config=model.config,
        model=model,
        tokenizer=tokenizer,
        languages=corpus.languages,
        batches=step_batches(corpus, masking, recipe, accelerator),
        held_out=held_out_batches(corpus, masking, recipe),
        coverage=covered,
        description="\n".join(
            [
                *([] if recipe.teacher.trim is None else [describe_trimmed(name)]),
                f"teacher  {count_parameters(model):,} parameters",
                mixture(corpus),
                *coverage_table(covered),
            ]
        ),
        load_teacher=lambda: load_masked_lm(name, revision=revision),
        first_batches=lambda: first_batches(corpus, masking, recipe),
        inputs=lambda: {
            **model_inputs("teacher", name, revision, flag="--teacher"),
            **text_input(corpus, recipe.corpus.paths),
        },
        facts={"teacher": name, **corpus_facts(corpus, covered)},
    )


def cached_sources(recipe: DistillRecipe, cache: TeacherCache, accelerator: Accelerator) -> Sources:
    """What a cache holds of teacher and text."""
    return Sources(
        teacher=cache.teacher(recipe.optimisation.precision),
        config=cache.config(),
        model=None,
        tokenizer=cache.tokenizer(),
        languages=cache.languages,
        batches=CachedBatches(
            cache,
            seed=recipe.run.seed,
            accumulation=recipe.optimisation.accumulation,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        ),
        held_out=cache.held_out(),
        coverage={},
        description=cache.describe(),
        load_teacher=lambda: _teacher_of(cache, recipe),
        first_batches=lambda: itertools.chain.from_iterable(
            cache.step(number) for number in range(cache.steps)
        ),
        inputs=lambda: {"teacher cache": Input(str(cache.folder), cache.fingerprint())},
        facts={"teacher_cache": str(cache.folder), "teacher": cache.index["teacher"]},
        conclusion=lambda rate: (
            f"cache    {rate:,.0f} tokens/s without the teacher: an epoch takes 1/{cache.speed_up(rate):.1f} of the "
            "time of one in which it reads as fast as when the cache was made"
        ),
    )


def _teacher_of(cache: TeacherCache, recipe: DistillRecipe) -> PreTrainedModel:
    """The teacher that a cache was made with, from where it was then, or from where the recipe says it is.

    Raises:
        ValueError: it is at neither.
    """
    places = [(cache.index["teacher"], None), (recipe.teacher.model, recipe.teacher.revision)]
    for name, revision in places:
        with contextlib.suppress(ValueError, OSError):
            if (
                name
                and fingerprint_of_weights(name, revision) == cache.index["made_from"]["teacher"]
            ):
                return load_masked_lm(name, revision=revision)
    raise ValueError(
        f"student.initial: got {recipe.student.initial} with teacher.cache, which holds no weights of the teacher, and "
        f"{cache.index['teacher']} has them no more; give them with --teacher beside it, or take student.initial random"
    )


def step_batches(
    corpus: Corpus, masking: Masking, recipe: DistillRecipe, accelerator: Accelerator
) -> StepBatches:
    """This process's share of a recipe's training steps."""
    return StepBatches(
        corpus,
        masking,
        batch_size=recipe.optimisation.batch_size,
        batch_tokens=recipe.optimisation.batch_tokens,
        max_length=recipe.corpus.max_length,
        accumulation=recipe.optimisation.accumulation,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=recipe.corpus.workers,
    )


def first_batches(corpus: Corpus, masking: Masking, recipe: DistillRecipe) -> Iterator[Batch]:
    """The first batches of training, of all processes, read beside the run: its own batches stay where they are."""
    with contextlib.closing(
        StepBatches(
            corpus,
            masking,
            batch_size=recipe.optimisation.batch_size,
            batch_tokens=recipe.optimisation.batch_tokens,
            max_length=recipe.corpus.max_length,
        )
    ) as steps:
        for step in steps:
            yield from step


def held_out_batches(
    corpus: Corpus, masking: Masking, recipe: DistillRecipe
) -> dict[str, list[Batch]]:
    """Evaluation batches by language, masked as in training, matched on the masked tokens."""
    evaluation = Masking(
        masking.tokenizer,
        masking.probability,
        kd_tokens="masked" if masking.probability > 0 else "all",
        seed=0,
    )
    return held_out(corpus, evaluation, recipe.optimisation.batch_size, recipe.corpus.max_length)


def corpus_facts(corpus: Corpus, covered: Mapping[str, Coverage]) -> dict[str, Any]:
    """What run.json says of the text: which it is, documents by language (null where streamed), how it is cut."""
    return {
        "corpus": corpus.fingerprint(),
        "documents": corpus.counts,
        "coverage": {language: asdict(one) for language, one in covered.items()},
    }


def mixture(corpus: Corpus) -> str:
    """How many documents each language has, and how often it is drawn."""
    shares = corpus.probabilities
    parts = []
    for language, count in corpus.counts.items():
        known = "streamed" if count is None else f"{count:,}"
        parts.append(f"{language} {known} ({shares[language]:.0%})")
    return f"corpus   {', '.join(parts)}"
