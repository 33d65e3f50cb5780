"""A batch whose loss or gradient was not finite, written aside: as tensors to repeat the step, and as text to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch
from comet.durable import file_aside, write_json, writing

FOLDER = "bad_batches"


def save_bad_batch(
    folder: Path,
    step: int,
    batches: Sequence[Batch],
    tokenizer: PreTrainedTokenizerFast,
    *,
    process: int = 0,
) -> Path:
    """Write the pieces of a step that a process has read.

    `bad_batches/step-N-process-P.safetensors` holds ids, mask, labels, matched and masked positions and languages of
    piece i as `i/input_ids` and so on; the JSON file beside it the sequences as the models read them and as they were.

    Args:
        folder: of the run.
        step: what the files are called by.
        batches: the pieces.
        tokenizer: turns ids back into text.
        process: whose pieces these are.

    Returns:
        The safetensors file.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / FOLDER / f"step-{step}-process-{process}.safetensors"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}/{name}": value.cpu().clone(memory_format=torch.contiguous_format)
        for number, batch in enumerate(batches)
        for name, value in _tensors(batch).items()
    }
    with file_aside(path) as partial:
        save_file(tensors, partial)
    texts = [
        {"piece": number, "row": row, **_texts(batch, row, tokenizer)}
        for number, batch in enumerate(batches)
        for row in range(len(batch.input_ids))
    ]
    write_json(path.with_suffix(".json"), texts)
    return path


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {
        "input_ids": batch.input_ids,
        "mask": _mask(batch),
        "labels": batch.labels,
        "kd_positions": batch.kd_positions,
        "masked_positions": batch.masked_positions,
        "languages": batch.languages,
    }


def _mask(batch: Batch) -> Tensor:
    return torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.mask is None else batch.mask


def _texts(batch: Batch, row: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    real = _mask(batch)[row]
    read, labels = batch.input_ids[row][real], batch.labels[row][real]
    original = torch.where(labels >= 0, labels, read)
    return {
        "language": int(batch.languages[row]),
        "read": tokenizer.decode(read.tolist()),
        "original": tokenizer.decode(original.tolist(), skip_special_tokens=True),
    }
