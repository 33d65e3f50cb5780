"""Writes a teacher cache file by file: each appears whole, and a command that is killed goes on behind the last one.

After every file of steps the index is written with the position in the text that the next one begins at.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch, TeacherOutputs
from comet.batches import StepBatches
from comet.cache_files import describe, tensors_of, write_tensors
from comet.configuration import contradiction
from comet.durable import (
    UnwritableError,
    is_as_good_as_empty,
    sealed,
    sweep,
    write_json,
    writing,
)
from comet.tap import TappedEncoder
from comet.teacher_cache import HEAD, HELD_OUT, INDEX, TEACHER, read_index
from comet.teachers import OnlineTeacher
from comet.top_logits import largest_logits

# A file of steps ends once it has this many bytes.
SHARD_BYTES = 128 << 20


@dataclass(frozen=True)
class Kept:
    """What is stored of the teacher's logits.

    Attributes:
        kind: `hidden`, the head's inputs, or `logits`, the largest ones.
        top: how many of those.
        temperature: at which the others are summed.
    """

    kind: Literal["hidden", "logits"]
    top: int
    temperature: float


class Reader:
    """The teacher, reading.

    Args:
        teacher: where it is to read.
        precision: of its matrix products.
        device: where it is.
    """

    def __init__(self, teacher: OnlineTeacher, precision: str, device: torch.device) -> None:
        self.teacher = teacher
        self.dtype = getattr(torch, precision)
        self.device = device
        self.seconds = 0.0

    @torch.no_grad()
    def read(self, batch: Batch, kept: Kept) -> dict[str, Tensor]:
        """A batch and what the teacher says to it, as they are stored.

        Raises:
            ValueError: not all of it is finite.
        """
        start = time.perf_counter()
        halved = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if halved else None, enabled=halved):
            said = self.teacher.read(batch.to(self.device))
        for value in (said.hidden, said.attention_map):
            if value is not None and not value.isfinite().all():
                raise ValueError(
                    f"--teacher: its outputs are not all finite (NaN or infinite) in {str(self.dtype)[6:]}, so nothing "
                    "could be learnt from them; try --optimisation.precision float32, or another teacher"
                )
        if kept.kind == "logits":
            assert said.hidden is not None
            head = self.teacher.output_weight, self.teacher.output_bias
            top = largest_logits(said.hidden, *head, kept.top, kept.temperature)
            said = TeacherOutputs(attention_map=said.attention_map, top=top)
        stored = tensors_of(batch, said)
        self.seconds += time.perf_counter() - start
        return stored


class Writer:
    """A cache on its way: what is there already stays.

    Args:
        folder: made if missing.
        identity: what the cache is made from and for; a folder that holds part of another cache is refused.
        is_of: of things it is made from, what tells whether a fingerprint of an earlier version is theirs.

    Raises:
        ValueError: the folder holds another cache, or other files.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        is_of: Mapping[str, Callable[[str], bool]] | None = None,
    ) -> None:
        self.folder = folder
        progress = {
            "complete": False,
            "files": {},
            "teacher_files": {},
            "shards": [],
            "seconds": 0.0,
        }
        self.index: dict[str, Any] = {**identity, **progress}
        if (folder / INDEX).exists():
            self.index = read_index(folder)
            _require_identity(folder, self.index, identity, is_of or {})
        elif folder.exists() and not is_as_good_as_empty(folder):
            raise ValueError(f"--output: {folder} holds other files; give an empty folder")

    @property
    def steps_done(self) -> int:
        """Steps in complete files."""
        return sum(shard["steps"] for shard in self.index["shards"])

    def begin(self, encoder: TappedEncoder, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write what is there once, unless it is there; remove what a killed process left."""
        sweep(self.folder)
        if HEAD in self.index["files"]:
            return
        self.save()
        with writing(self.folder / TEACHER):
            encoder.model.config.save_pretrained(self.folder / TEACHER)
            tokenizer.save_pretrained(self.folder / TEACHER)
        self.index["teacher_files"] = {
            path.name: describe(path) for path in sorted((self.folder / TEACHER).iterdir())
        }
        head = {"weight": encoder.output_weight.detach()}
        if encoder.output_bias is not None:
            head["bias"] = encoder.output_bias.detach()
        self.add(HEAD, head)
        self.save()

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a file; `save` makes it known."""
        self.index["files"][name] = write_tensors(self.folder / name, tensors)

    def save(self, **facts: Any) -> None:
        """Write the index."""
        self.index |= facts
        write_json(self.folder / INDEX, sealed(self.index))

    @contextlib.contextmanager
    def full_disk_said(self) -> Iterator[None]:
        """Say how far it went where a file cannot be written."""
        try:
            yield
        except UnwritableError as error:
            raise UnwritableError(
                error.path,
                error.reason,
                f"{self.steps_done:,} of {self.index['steps']:,} steps are there: make room, or make the "
                "folder writable, and start the same command again: it resumes",
            ) from error


def write_steps(writer: Writer, reader: Reader, batches: StepBatches, kept: Kept) -> None:
    """Write the steps that are missing, a file at a time."""
    if writer.index["shards"]:
        batches.load_state_dict(writer.index["batches"])
    steps = writer.index["steps"]
    shown = not sys.stderr.isatty()
    with tqdm(total=steps, initial=writer.steps_done, unit="step", disable=shown) as bar:
        while writer.steps_done < steps:
            first, shard = writer.steps_done, _Shard()
            tensors: dict[str, Tensor] = {}
            while first + shard.steps < steps and shard.bytes < SHARD_BYTES:
                for stream, batch in enumerate(next(batches)):
                    stored = reader.read(batch, kept)
                    prefix = f"{first + shard.steps}.{stream}"
                    tensors |= {f"{prefix}.{name}": value for name, value in stored.items()}
                    shard.add(batch, stored)
                shard.steps += 1
                bar.update()
            name = f"steps-{len(writer.index['shards']):05}.safetensors"
            writer.add(name, tensors)
            writer.index["shards"].append(
                {"name": name, "steps": shard.steps, "tokens": shard.tokens}
            )
            fewest = min(shard.fewest, writer.index.get("fewest_sequences", shard.fewest))
            writer.save(
                batches=batches.state_dict(),
                batches_per_step=stream + 1,
                fewest_sequences=fewest,
                seconds=writer.index["seconds"] + reader.seconds,
            )
            reader.seconds = 0.0
            if shown:
                print(f"{writer.steps_done:,} of {steps:,} steps", flush=True)
            _warn_of_room(writer)


@dataclass
class _Shard:
    steps: int = 0
    bytes: int = 0
    tokens: int = 0
    fewest: int = sys.maxsize

    def add(self, batch: Batch, stored: Mapping[str, Tensor]) -> None:
        self.bytes += sum(value.nbytes for value in stored.values())
        self.tokens += batch.tokens
        self.fewest = min(self.fewest, len(batch.input_ids))


def _warn_of_room(writer: Writer) -> None:
    """Once, after the first file."""
    shards, files = writer.index["shards"], writer.index["files"]
    if len(shards) != 1:
        return
    each = files[shards[0]["name"]]["bytes"] / shards[0]["steps"]
    needed = each * (writer.index["steps"] - writer.steps_done)
    free = shutil.disk_usage(writer.folder).free
    if needed > free:
        print(
            f"warning: {needed / 2**30:,.1f} GiB are still to be written, {free / 2**30:,.1f} GiB are free; "
            "--batches makes fewer",
            flush=True,
        )


def write_held_out(writer: Writer, reader: Reader, held_out: Mapping[str, Sequence[Batch]]) -> None:
    """Write the evaluation batches, with hidden states, so that agreement is measured exactly."""
    exact = Kept("hidden", 0, 1.0)
    tensors = {
        f"{language}.{number}.{name}": value
        for language, batches in held_out.items()
        for number, batch in enumerate(batches)
        for name, value in reader.read(batch, exact).items()
    }
    writer.add(HELD_OUT, tensors)
    counts = {language: len(batches) for language, batches in held_out.items()}
    writer.index.pop("batches")
    writer.save(held_out=counts, complete=True)


def _require_identity(
    folder: Path,
    index: Mapping[str, Any],
    identity: Mapping[str, Any],
    is_of: Mapping[str, Callable[[str], bool]],
) -> None:
    """Refuse to resume what was begun from or for something else."""
    difference = contradiction(identity["recipe"], index["recipe"])
    for name, there in index["made_from"].items():
        is_here = is_of.get(name, identity["made_from"].get(name, there).__eq__)
        if difference is None and not is_here(there):
            difference = f"it was made from another {name}"
    for name in ("keep", "top", "precision", "steps"):
        if difference is None and index[name] != identity[name]:
            difference = f"{name} is {index[name]!r} there, {identity[name]!r} here"
            if name == "steps":
                difference += " (a cache is not extended: a longer run goes round it again)"
    if difference is not None:
        raise ValueError(
            f"--output: {folder} holds another cache: {difference}; give another --output"
        )
