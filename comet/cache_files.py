"""Files of a teacher cache: batches as tensors and back, checksums, and what tells teachers and tokenizers apart."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch, TeacherOutputs
from comet.batches import IGNORED_LABEL
from comet.durable import checksum, file_aside

_OPEN_FILES = 8
_DIFFERS = "its checksum differs from what was written"


def tensors_of(batch: Batch, teacher: TeacherOutputs) -> dict[str, Tensor]:
    """A batch with right-hand padding and what the teacher said to it, as they are stored.

    Args:
        batch: on the CPU.
        teacher: on any device, with an attention map and either hidden states or the largest logits.
    """
    length = batch.input_ids.shape[1]
    lengths_B = (
        torch.full_like(batch.languages, length) if batch.mask is None else batch.mask.sum(1)
    )
    assert teacher.attention_map is not None
    map_BSS = teacher.attention_map.cpu()
    stored = {
        "ids": batch.input_ids.int(),
        "lengths": lengths_B.int(),
        "labels": batch.labels.int(),
        "languages": batch.languages.int(),
        "map": map_BSS[_pairs(lengths_B, length)].half(),
    }
    if teacher.hidden is not None:
        return {**stored, "hidden": teacher.hidden.to("cpu", torch.bfloat16)}
    assert teacher.top is not None
    values_NK, pieces_NK, tail_N = (part.cpu() for part in teacher.top)
    return {
        **stored,
        "values": (values_NK - values_NK[:, :1]).half(),
        "pieces": pieces_NK.int(),
        "tail": tail_N,
    }


def batch_from(stored: Mapping[str, Tensor], kd_tokens: str) -> Batch:
    """What `tensors_of` was given, the teacher's part in the dtypes in which it is stored.

    Args:
        stored: by name.
        kd_tokens: `all` or `masked`: the tokens whose logits are matched.
    """
    ids_BS, lengths_B = stored["ids"].long(), stored["lengths"].long()
    labels_BS = stored["labels"].long()
    length = ids_BS.shape[1]
    real_BS = torch.arange(length) < lengths_B[:, None]
    masked_positions = (labels_BS != IGNORED_LABEL).flatten().nonzero()[:, 0]
    matched = real_BS.flatten().nonzero()[:, 0] if kd_tokens == "all" else masked_positions
    map_BSS = torch.zeros(len(ids_BS), length, length, dtype=torch.float16)
    map_BSS[_pairs(lengths_B, length)] = stored["map"]
    has_hidden = "hidden" in stored
    return Batch(
        input_ids=ids_BS,
        mask=None if real_BS.all() else real_BS,
        kd_positions=matched,
        masked_positions=masked_positions,
        labels=labels_BS,
        languages=stored["languages"].long(),
        tokens=int(lengths_B.sum()),
        squared_lengths=int((lengths_B**2).sum()),
        teacher=TeacherOutputs(
            attention_map=map_BSS,
            hidden=stored["hidden"] if has_hidden else None,
            top=None if has_hidden else (stored["values"], stored["pieces"], stored["tail"]),
        ),
    )


def _pairs(lengths_B: Tensor, length: int) -> Tensor:
    """`[B, S, S]`, true on pairs of real tokens."""
    real_BS = torch.arange(length) < lengths_B[:, None]
    return real_BS[:, :, None] & real_BS[:, None, :]


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file, whole or not at all, durably.

    Returns:
        Its size and SHA-256.

    Raises:
        OSError: there is no room, or the folder cannot be written.
    """
    with file_aside(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
        return describe(partial)


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def fingerprint_of_weights(name_or_folder: str, revision: str | None) -> str:
    """A SHA-256 of the names and contents of a model's safetensors files, which are not loaded.

    Raises:
        ValueError: they are not on this machine.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        try:
            folder = Path(
                snapshot_download(
                    name_or_folder,
                    revision=revision,
                    allow_patterns=["*.safetensors"],
                    local_files_only=True,
                )
            )
        except (LocalEntryNotFoundError, ValueError) as error:
            raise ValueError(
                f"--teacher: {name_or_folder} is not on this machine, so it cannot be compared with the "
                "teacher of the cache; leave out --teacher to train from the cache alone"
            ) from error
    found = fingerprint_of_files(folder.glob("*.safetensors"))
    if not found:
        raise ValueError(f"--teacher: {name_or_folder} holds no weights (*.safetensors)")
    return found


def fingerprint_of_files(files: Iterable[Path]) -> str:
    """A SHA-256 of the names and contents of files, in the order of their names; empty without any."""
    lines = [f"{file.name} {checksum(file)}" for file in sorted(files)]
    return _hash("\n".join(lines)) if lines else ""


def fingerprint_of_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """A SHA-256 of all that decides what a tokenizer makes of a text, special tokens included."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for changed_by_calls in ("truncation", "padding"):
        rules.pop(changed_by_calls, None)
    special = {name: str(piece) for name, piece in tokenizer.special_tokens_map.items()}
    return _hash(json.dumps([rules, special], sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class CheckedFiles:
    """Memory-mapped safetensors files, each compared with its checksum in the background once it is first read.

    Args:
        folder: where they lie.
        described: by name, the size and SHA-256 they were written with.
    """

    def __init__(self, folder: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._described = described
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._checks: dict[str, Future[str]] = {}
        self._sound: set[str] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksums")

    def require_sizes(self) -> None:
        """Compare sizes only.

        Raises:
            ValueError: a file is missing, or is longer or shorter than it was.
        """
        for name, described in self._described.items():
            path = self._folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != described["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise damaged(path, f"{found}, {described['bytes']} were written")

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of a file whose names begin so, without that beginning; views of the file.

        Raises:
            ValueError: it cannot be read.
        """
        path = self._folder / name
        try:
            file, names = self._opened(name, path)
            return {
                one[len(prefix) :]: file.get_tensor(one) for one in names if one.startswith(prefix)
            }
        except (OSError, SafetensorError) as error:
            raise damaged(path, str(error)) from error

    def require_whole(self, folder: str) -> None:
        """Compare files of a folder with their checksums, at once.

        Raises:
            ValueError: one is not the one that was written.
        """
        for name, described in self._described.items():
            if name.startswith(f"{folder}/") and name not in self._sound:
                if checksum(self._folder / name) != described["sha256"]:
                    raise damaged(self._folder / name, _DIFFERS)
                self._sound.add(name)

    def require_sound(self, *, wait: bool) -> None:
        """Report on checks that have ended, or wait for all.

        Raises:
            ValueError: a file is not the one that was written.
        """
        for name, check in list(self._checks.items()):
            if wait or check.done():
                if check.result() != self._described[name]["sha256"]:
                    raise damaged(self._folder / name, _DIFFERS)
                self._sound.add(name)
                del self._checks[name]

    def _opened(self, name: str, path: Path) -> tuple[Any, list[str]]:
        if name not in self._open:
            file = safe_open(path, framework="pt")
            self._open[name] = file, list(file.keys())
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
            if name not in self._sound and name not in self._checks:
                self._checks[name] = self._pool.submit(checksum, path)
        self._open.move_to_end(name)
        opened: tuple[Any, list[str]] = self._open[name]
        return opened


def damaged(path: Path, why: str) -> ValueError:
    """What is said of a file of a cache that is not what was written."""
    return ValueError(
        f"--teacher-cache: {path} is damaged ({why}); remove the folder and make it again with "
        "python -m comet.cache_teacher"
    )
