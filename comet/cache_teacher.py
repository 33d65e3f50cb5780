"""`python -m comet.cache_teacher`: the teacher reads a run's batches once, so that students can be trained without it.

    python -m comet.cache_teacher --teacher T --corpus TEXT --steps 10000 --output cache
    python -m comet.distill --fused --teacher-cache cache --output runs/student

All flags and recipes of `comet.distill` are taken; what of the recipe decides which batches are read is `FIXED` of
`comet.teacher_cache`. Killed and started again with the same command, it goes on behind the last complete file.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

import comet_kernels
import comet_kernels.reference
from comet import quickstart
from comet.batches import Masking, StepBatches, open_text
from comet.cache_files import fingerprint_of_tokenizer, fingerprint_of_weights
from comet.cache_writer import Kept, Reader, Writer, write_held_out, write_steps
from comet.configuration import CommandParser, build, parse_command, run_command
from comet.corpus import Corpus
from comet.distill import SHORTCUTS
from comet.durable import LOCK, locked
from comet.formats import stamp
from comet.frozen import round_weights
from comet.inputs import fingerprint_of_config
from comet.processes import make_accelerator, say
from comet.recipe import DistillRecipe
from comet.sources import held_out_batches
from comet.students import load_masked_lm, load_tokenizer, require_embedded
from comet.tap import TappedEncoder, require_positions
from comet.teacher_cache import FORMAT, TeacherCache, fixed_part
from comet.teachers import OnlineTeacher
from comet.trimmed_teacher import teacher_of

PROGRAM = "comet.cache_teacher"
DEFAULT_FOLDER = Path("runs") / "teacher-cache"


def cache_teacher(recipe: DistillRecipe, folder: Path, kept: Kept, steps: int) -> TeacherCache:
    """Make a cache, or go on with one.

    Args:
        recipe: of the runs that are to train from it.
        folder: where it is to lie.
        kept: what is stored of the logits.
        steps: how many.

    Raises:
        ValueError: something the user can mend, in one line.
        OSError: the disk is full; what is there stays.
    """
    accelerator = make_accelerator(recipe.optimisation.precision)
    corpus = open_text(recipe.corpus, recipe.run.seed)
    name, revision = teacher_of(recipe, recipe.teacher.model or quickstart.toy_teacher(), corpus)
    tokenizer = load_tokenizer(name, revision=revision)
    identity = {
        **stamp(FORMAT),
        "made_from": {
            "teacher": fingerprint_of_weights(name, revision),
            "configuration": fingerprint_of_config(name, revision),
            "tokenizer": fingerprint_of_tokenizer(tokenizer),
            "corpus": corpus.fingerprint(),
        },
        "recipe": fixed_part(recipe, kept.kind),
        "keep": kept.kind,
        "top": kept.top if kept.kind == "logits" else None,
        "precision": recipe.optimisation.precision,
        "steps": steps,
        "teacher": name,
        "languages": list(corpus.languages),
    }
    is_of = {"corpus": corpus.is_of}
    index = Writer(folder, identity, is_of).index
    if index["complete"]:
        say(f"done     the cache in {folder} has its {steps:,} steps; the teacher reads nothing")
        return TeacherCache(folder, index)
    encoder = _load_encoder(recipe, name, revision, tokenizer, accelerator.device)
    if kept.kind == "logits" and kept.top > len(encoder.output_weight):
        raise ValueError(
            f"--top-k: got {kept.top}, but the teacher's vocabulary has {len(encoder.output_weight)} entries"
        )
    ops = comet_kernels if recipe.objective.fused else comet_kernels.reference
    masking = Masking(
        tokenizer, recipe.corpus.mask_probability, recipe.objective.kd_tokens, recipe.run.seed
    )
    with locked(folder / LOCK, f"--output: another process is making the cache in {folder}"):
        writer = Writer(
            folder, identity, is_of
        )  # again: another process may have written meanwhile
        if writer.index["complete"]:
            return TeacherCache(folder, writer.index)
        with writer.full_disk_said():
            writer.begin(encoder, tokenizer)
            teacher = OnlineTeacher(encoder.to(accelerator.device), ops)
            reader = Reader(teacher, recipe.optimisation.precision, accelerator.device)
            with closing(_step_batches(recipe, corpus, masking)) as batches:
                write_steps(writer, reader, batches, kept)
            write_held_out(writer, reader, held_out_batches(corpus, masking, recipe))
    return TeacherCache(folder, writer.index)


def _load_encoder(
    recipe: DistillRecipe,
    name: str,
    revision: str | None,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
) -> TappedEncoder:
    model = load_masked_lm(name, revision=revision)
    require_embedded(tokenizer, model.config, flag="--teacher")
    require_positions(model, recipe.corpus.max_length, "corpus.max_length", "the teacher")
    encoder = TappedEncoder(model, recipe.teacher.attention_layer)
    round_weights(encoder, recipe.optimisation.precision, device)
    if recipe.optimisation.compile:
        encoder.compile(dynamic=True)
    return encoder


def _step_batches(recipe: DistillRecipe, corpus: Corpus, masking: Masking) -> StepBatches:
    return StepBatches(
        corpus,
        masking,
        batch_size=recipe.optimisation.batch_size,
        batch_tokens=recipe.optimisation.batch_tokens,
        max_length=recipe.corpus.max_length,
        workers=recipe.corpus.workers,
    )


def report(cache: TeacherCache) -> str:
    """What was kept, what it takes, and what a run gains, as lines."""
    teacher = cache.teacher_tokens_per_second
    kept = (
        "the head's inputs in bfloat16"
        if cache.index["keep"] == "hidden"
        else f"the {cache.index['top']} largest logits in float16, and the others' sum"
    )
    lines = [
        f"kept     {kept}; attention maps in float16",
        f"read     {cache.steps:,} steps, {cache.tokens:,} tokens, {teacher:,.0f} a second",
        f"size     {cache.bytes_per_token:,.0f} bytes a token, {cache.bytes / 2**20:,.1f} MiB with the head",
        "",
        "An epoch from the cache, against one with the teacher at that speed beside the student",
        f"{'from the cache, tokens/s':>26} {'with the teacher':>18} {'speed-up':>10}",
    ]
    for rate in (teacher, 3 * teacher, 10 * teacher):
        speed_up = cache.speed_up(rate)
        lines.append(f"{rate:26,.0f} {rate / speed_up:18,.0f} {speed_up:9.1f}x")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    own, rest = _own_parser().parse_known_args(list(argv))
    given = parse_command(
        DistillRecipe,
        rest,
        program=PROGRAM,
        description="Let a teacher read a run's batches once, for students to be trained from. Beside the flags of "
        f"comet.distill: {OWN_FLAGS}",
        shortcuts=SHORTCUTS,
        default_recipe=_default_recipe,
    )
    recipe = build(DistillRecipe, given.content)
    _refuse(recipe, own, resume=given.resume)
    folder = Path(recipe.run.output) if recipe.run.output else DEFAULT_FOLDER
    steps = recipe.optimisation.steps if own.batches is None else own.batches
    kept = Kept(own.keep, own.top_k, recipe.objective.temperature)
    cache = cache_teacher(recipe, folder, kept, steps)
    print(f"{report(cache)}\n\ncache    {folder}")


OWN_FLAGS = (
    "--keep hidden|logits (default hidden: exact but for rounding), --top-k K (default 64: how many with logits), "
    "--batches N (default optimisation.steps: a longer run goes round again)"
)


def _own_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--keep", choices=["hidden", "logits"], default="hidden")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--batches", type=int, default=None)
    return parser


def _refuse(recipe: DistillRecipe, own: argparse.Namespace, *, resume: bool) -> None:
    """Refuse what a cache cannot hold, and flags that would do nothing."""
    if resume:
        raise ValueError("--resume: not needed; the same command goes on where it stopped")
    if recipe.teacher.cache is not None:
        raise ValueError("--teacher-cache: a cache is made from a teacher, not from a cache")
    if recipe.objective.attention_loss == "relation":
        raise ValueError(
            "objective.attention_loss: got relation, expected mse or kl: a cache holds attention maps, not "
            "queries, keys and values"
        )
    if own.keep == "logits" and recipe.objective.temperature_mode != "constant":
        raise ValueError(
            f"objective.temperature_mode: got {recipe.objective.temperature_mode} with --keep logits, expected "
            "constant, at which the others are summed, or --keep hidden"
        )
    for flag, number in (("--top-k", own.top_k), ("--batches", own.batches)):
        if number is not None and number < 1:
            raise ValueError(f"{flag}: got {number}, expected 1 or more")


def _default_recipe(flags: Mapping[str, Any]) -> str | None:
    given = {"teacher.model", "corpus.paths"} & flags.keys()
    return None if given else "quickstart"


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
