"""What a teacher said to the batches of a run, on disk: students train from it with no teacher in memory.

index.json            what the cache was made from and for, size and SHA-256 of its files, its own SHA-256; at the end,
                      that it is `complete`
head.safetensors      the output embeddings and their bias, once, as the teacher has them
steps-N.safetensors   for some steps each: the batches (ids, lengths, labels, languages) and, of the teacher,
                      its head's inputs at the matched tokens in bfloat16, or the K largest logits there,
                      and head-averaged attention maps in float16, of real tokens only
held-out.safetensors  the same for the evaluation batches, always with the head's inputs
teacher/              the teacher's configuration and tokenizer

A map's entries are below 1 and most near 1/S: float16 rounds them to 1 part in 4096, bfloat16 to 1 in 512. Of the
largest logits the differences from a token's largest are kept, in float16; the tail rule is that of `comet.top_logits`.

A run from a cache has the cache's text, order, masking, batches, seed and teacher (`FIXED`), and with logits its
temperature; student, weights, attention loss, projection, learning rates, number of steps, precision, accumulation and
number of processes are its own. Past the last step it starts again, in an order drawn from seed and round.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from comet.batch import Batch, TeacherOutputs, piece_of
from comet.batches import open_text, slices_of
from comet.cache_files import (
    CheckedFiles,
    batch_from,
    damaged,
    fingerprint_of_tokenizer,
    fingerprint_of_weights,
)
from comet.configuration import contradiction
from comet.corpus.documents import content_hash
from comet.durable import unsealed
from comet.formats import NewerFormatError, require_known_format
from comet.holdings import instead
from comet.names import path_component
from comet.pretrained import load_config
from comet.processes import on_main
from comet.recipe import DistillRecipe
from comet.students import load_tokenizer
from comet.trimmed_teacher import teacher_of

FORMAT = 2  # 1 had no checksums of index.json and teacher/
INDEX, HEAD, HELD_OUT, TEACHER = "index.json", "head.safetensors", "held-out.safetensors", "teacher"

# What a run from a cache shares with it, by part of the recipe.
FIXED: dict[str, tuple[str, ...]] = {
    "teacher": ("attention_layer",),
    "corpus": (
        "languages",
        "sampling_temperature",
        "held_out",
        "max_length",
        "mask_probability",
        "shuffle_buffer",
        "in_memory",
        "streams",
    ),
    "objective": ("kd_tokens",),
    "optimisation": ("batch_size", "batch_tokens"),
    "run": ("seed",),
}
FIXED_WITH_LOGITS = ("temperature", "temperature_mode")

_ORDER = 7  # keeps the order of rounds apart from other things drawn from the seed


class TeacherCache:
    """A finished cache.

    Args:
        folder: where it lies.
        index: its index.json.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.index = index
        self.languages: tuple[str, ...] = tuple(index["languages"])
        self.steps = sum(shard["steps"] for shard in index["shards"])
        self.tokens = sum(shard["tokens"] for shard in index["shards"])
        self._shard_of_step = [
            shard["name"] for shard in index["shards"] for _ in range(shard["steps"])
        ]
        described = {f"{TEACHER}/{name}": one for name, one in index["teacher_files"].items()}
        self._files = CheckedFiles(folder, {**index["files"], **described})

    @property
    def bytes_per_token(self) -> float:
        """On disk, per real token of the steps; the head is not counted."""
        shards = (self.index["files"][shard["name"]] for shard in self.index["shards"])
        return float(sum(file["bytes"] for file in shards) / self.tokens)

    @property
    def bytes(self) -> int:
        """On disk, all files together."""
        return sum(file["bytes"] for file in self.index["files"].values())

    @property
    def teacher_tokens_per_second(self) -> float:
        """How fast the teacher read when the cache was made."""
        return float(self.tokens / self.index["seconds"])

    def speed_up(self, tokens_per_second: float) -> float:
        """An epoch with the teacher at work against one at this speed, where the teacher is as fast as it was."""
        return 1 + tokens_per_second / self.teacher_tokens_per_second

    def describe(self) -> str:
        """Lines for the start of a run."""
        kept = (
            "hidden states" if self.index["keep"] == "hidden" else f"top {self.index['top']} logits"
        )
        return (
            f"cache    {self.folder}: {kept} of {self.index['teacher']} at {self.steps:,} steps, "
            f"{self.tokens:,} tokens, {self.bytes_per_token:,.0f} bytes each\n"
            f"         the teacher read {self.teacher_tokens_per_second:,.0f} tokens/s when it was made; at as many "
            f"a second, a run from it takes half the time of one with the teacher"
        )

    def fingerprint(self) -> str:
        """SHA-256 of what it was made from and of its files."""
        index = {name: self.index[name] for name in ("made_from", "recipe", "files", "shards")}
        return content_hash(json.dumps(index, sort_keys=True))

    def config(self) -> PreTrainedConfig:
        """The teacher's configuration."""
        self._files.require_whole(TEACHER)
        return load_config(str(self.folder / TEACHER), flag="--teacher-cache")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The teacher's tokenizer."""
        self._files.require_whole(TEACHER)
        return load_tokenizer(str(self.folder / TEACHER), flag="--teacher-cache")

    def teacher(self, precision: str) -> "CachedTeacher":
        """What stands in for the teacher in a run of this precision; its head stays on disk until it is used."""
        with self._damage_named():
            head = self._files.tensors(HEAD)
            return CachedTeacher(head["weight"], head.get("bias"), precision)

    def held_out(self) -> dict[str, list[Batch]]:
        """The evaluation batches by language, with what the teacher said to them."""
        masked = self.index["recipe"]["corpus"]["mask_probability"] > 0
        kd_tokens = "masked" if masked else "all"
        return {
            language: [
                self._batch(HELD_OUT, f"{language}.{number}", kd_tokens) for number in range(count)
            ]
            for language, count in self.index["held_out"].items()
        }

    def step(self, number: int) -> list[Batch]:
        """The batches of one step, one for each stream of the text, as they were read."""
        kd_tokens = self.index["recipe"]["objective"]["kd_tokens"]
        return [
            self._batch(self._shard_of_step[number], f"{number}.{stream}", kd_tokens)
            for stream in range(self.index["batches_per_step"])
        ]

    def require_sizes(self) -> None:
        """Compare the sizes of all files.

        Raises:
            ValueError: one is missing, or is longer or shorter than it was.
        """
        self._files.require_sizes()

    def require_sound(self, *, wait: bool = False) -> None:
        """Say so if a file that was read turned out not to be the one that was written.

        Args:
            wait: for checks that run, instead of leaving them to a later call.

        Raises:
            ValueError: one is damaged.
        """
        self._files.require_sound(wait=wait)

    def _batch(self, file: str, prefix: str, kd_tokens: str) -> Batch:
        with self._damage_named():
            return batch_from(self._files.tensors(file, f"{prefix}."), kd_tokens)

    @contextlib.contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Where tensors do not fit, say which file is not what was written before anything else is said."""
        try:
            yield
        except (KeyError, IndexError, TypeError, RuntimeError):
            self.require_sound(wait=True)
            raise


class CachedTeacher:
    """Stands in for a teacher whose outputs come with the batches; see `comet.teachers.Teacher`.

    Args:
        output_weight: `[V, E]`; may be a view of a file.
        output_bias: `[V]` or None.
        precision: that of the run's matrix products.
    """

    def __init__(self, output_weight: Tensor, output_bias: Tensor | None, precision: str) -> None:
        self.output_weight = output_weight
        self.output_bias = output_bias
        self._precision = precision

    def read(self, batch: Batch) -> TeacherOutputs:
        """What came with the batch, in the dtypes that losses take."""
        assert batch.teacher is not None
        said = batch.teacher
        top = said.top
        return TeacherOutputs(
            attention_map=None if said.attention_map is None else said.attention_map.float(),
            hidden=None if said.hidden is None else said.hidden.to(self.output_weight.dtype),
            top=None if top is None else (top[0].float(), top[1].long(), top[2]),
        )

    def to(self, device: torch.device) -> "CachedTeacher":
        """Move the head; on a GPU that is to multiply in 16 bits, it is converted here, once."""
        halved = device.type == "cuda" and self._precision != "float32"
        dtype = getattr(torch, self._precision) if halved else self.output_weight.dtype
        self.output_weight = self.output_weight.to(device, dtype)
        if self.output_bias is not None:
            self.output_bias = self.output_bias.to(device, dtype)
        return self


class CachedBatches:
    """Steps of a cache, round after round: what a loop over a corpus gets, with what the teacher said.

    The first round has the steps in the order in which the corpus gave them.

    Args:
        cache: opened.
        seed: of the order of later rounds.
        accumulation: pieces a process reads its share of a step in.
        process: which process this is.
        processes: how many share a step.

    Raises:
        ValueError: processes and streams do not divide each other, or a piece would be left without a sequence.
    """

    def __init__(
        self,
        cache: TeacherCache,
        *,
        seed: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._cache = cache
        self._seed = seed
        self._slices = slices_of(cache.index["batches_per_step"], process, processes, accumulation)
        fewest = cache.index["fewest_sequences"]
        if self._slices[-1] > fewest:
            raise ValueError(
                f"optimisation.accumulation: got {accumulation} in {processes} processes, but a batch of the "
                f"cache has {fewest} sequences, fewer than the {self._slices[-1]} pieces it would be cut into"
            )
        self._taken = 0
        self._round = -1

    def __iter__(self) -> "CachedBatches":
        return self

    def __next__(self) -> list[Batch]:
        self._cache.require_sound()
        around, place = divmod(self._taken, self._cache.steps)
        if around != self._round:
            self._round, self._order = around, self._order_of(around)
        batches = self._cache.step(int(self._order[place]))
        self._taken += 1
        own, pieces, first, every = self._slices
        return [
            piece_of(batches[stream], slice(start, None, every))
            for stream in own
            for start in range(first, every, every // pieces)
        ]

    def state_dict(self) -> dict[str, Any]:
        """How many steps were handed out, as JSON; every process has the same."""
        return {"streams": {"0": {"taken": self._taken}}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position: the same steps follow."""
        self._taken = int(state["streams"]["0"]["taken"])

    def close(self) -> None:
        """Wait until all that was read has been compared with its checksums.

        Raises:
            ValueError: a file is damaged.
        """
        self._cache.require_sound(wait=True)

    def _order_of(self, around: int) -> np.ndarray:
        if around == 0:
            return np.arange(self._cache.steps)
        random = np.random.default_rng([self._seed, around, _ORDER])
        return random.permutation(self._cache.steps)


def open_cache(folder: str, recipe: DistillRecipe) -> TeacherCache:
    """A finished cache that this run may train from.

    Args:
        folder: where it lies.
        recipe: of the run. Where it names a teacher or a text, those must be the cache's; where it names none, they
            need not be there any more.

    Raises:
        ValueError: it is none, is not finished, is damaged, or was made for something else; the message names what.
    """
    index = read_index(Path(folder))
    if not index["complete"]:
        done = sum(shard["steps"] for shard in index["shards"])
        raise ValueError(
            f"--teacher-cache: {folder} holds {done:,} of {index['steps']:,} steps; start the command that "
            "made it again: it goes on"
        )
    difference = contradiction(fixed_part(recipe, index["keep"]), index["recipe"])
    if difference:
        raise _foreign(folder, difference)
    on_main(lambda: _require_same_origin(folder, index, recipe))
    cache = TeacherCache(Path(folder), index)
    cache.require_sizes()
    return cache


def complete(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the user gave, and what the cache that it names decides: text, masking, batches, seed.

    Args:
        content: part → field → value, before defaults; returned as it is where it names no cache.

    Raises:
        ValueError: the user gave a value that differs from the cache's, or the folder holds no cache.
    """
    completed = {part: dict(fields) for part, fields in content.items()}
    folder = completed.get("teacher", {}).get("cache")
    if folder is None:
        return completed
    decided = read_index(Path(folder))["recipe"]
    given = {
        part: {field: value for field, value in fields.items() if field in decided.get(part, {})}
        for part, fields in completed.items()
    }
    difference = contradiction(given, decided)
    if difference:
        raise _foreign(folder, difference)
    for part, fields in decided.items():
        completed.setdefault(part, {}).update(fields)
    return completed


def fixed_part(recipe: DistillRecipe, keep: str) -> dict[str, dict[str, Any]]:
    """What a cache shares with the runs from it, part → field → value."""
    fixed = {
        part: {field: getattr(getattr(recipe, part), field) for field in fields}
        for part, fields in FIXED.items()
    }
    if keep == "logits":
        fixed["objective"] |= {
            field: getattr(recipe.objective, field) for field in FIXED_WITH_LOGITS
        }
    return fixed


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of a cache, finished or not.

    Raises:
        ValueError: there is none, it is damaged, or a later version of Comet wrote it.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"--teacher-cache: {folder} holds no teacher cache"
            + (instead(folder, "teacher cache") or "; python -m comet.cache_teacher makes one")
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        number = require_known_format(
            f"--teacher-cache: {folder}", {**content, "format": content["format"]}, FORMAT
        )
        index = unsealed(content, required=number > 1)
        index.setdefault("teacher_files", {})  # of which format 1 has no checksums
    except NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error
    for name in [
        *index["files"],
        *index["teacher_files"],
        *(shard["name"] for shard in index["shards"]),
    ]:
        path_component(name, f"--teacher-cache: {folder / INDEX}")
    return index


def _require_same_origin(folder: str, index: Mapping[str, Any], recipe: DistillRecipe) -> None:
    """Compare teacher, tokenizer and text with the cache's, where the recipe names them."""
    made_from = index["made_from"]
    if recipe.teacher.model is not None:
        name, revision = teacher_of(recipe, recipe.teacher.model)
        if fingerprint_of_weights(name, revision) != made_from["teacher"]:
            raise _foreign(folder, f"its teacher's weights are not those of {name}")
        tokenizer = load_tokenizer(name, revision=revision)
        if fingerprint_of_tokenizer(tokenizer) != made_from["tokenizer"]:
            raise _foreign(folder, f"its tokenizer is not that of {name}")
    paths = recipe.corpus.paths
    if paths and not open_text(recipe.corpus, recipe.run.seed).is_of(made_from["corpus"]):
        raise _foreign(folder, f"its text is not that of {', '.join(paths)}")


def _foreign(folder: str, difference: str) -> ValueError:
    return ValueError(
        f"--teacher-cache: {folder} was made for something else: {difference}; make another with "
        "python -m comet.cache_teacher"
    )
