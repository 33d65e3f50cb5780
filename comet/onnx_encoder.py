"""A fine-tuned model that was exported to ONNX, run by onnxruntime in place of the one in PyTorch."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch
from comet.pretrained import load_config
from comet.students import load_tokenizer, require_embedded
from comet.task_model import ModelCard, TaskEncoder, load_tuned, read_card

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"


class Encoder(NamedTuple):
    """A fine-tuned model that answers batches, whatever runs it.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        card: what it was trained on.
    """

    model: "TaskEncoder | OnnxEncoder"
    tokenizer: PreTrainedTokenizerFast
    card: ModelCard


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model that onnxruntime runs."""
    return (folder / GRAPH).is_file()


def load_encoder(folder: Path, *, flag: str = "--model") -> Encoder:
    """Load a fine-tuned model as it was saved, or as it was exported.

    Raises:
        ValueError: the folder holds none, or onnxruntime is needed and not installed.
    """
    if not is_exported(folder):
        tuned = load_tuned(folder, flag=flag)
        return Encoder(TaskEncoder(tuned.model), tuned.tokenizer, tuned.card)
    card = read_card(folder, flag=flag)
    model = OnnxEncoder(folder / GRAPH, flag=flag)
    tokenizer = load_tokenizer(str(folder), flag=flag)
    require_embedded(tokenizer, load_config(str(folder), flag=flag), flag=flag)
    return Encoder(model, tokenizer, card)


class OnnxEncoder(nn.Module):
    """Runs an exported model on the CPU, with as many threads as PyTorch would take.

    Args:
        file: that was exported.
        flag: the option that named its folder, for messages.

    Raises:
        ValueError: onnxruntime is not installed, or the file is none that it runs.
    """

    def __init__(self, file: Path, *, flag: str = "--model") -> None:
        super().__init__()
        threads = torch.get_num_threads()  # of OMP_NUM_THREADS too
        self._name = f"{flag}: {file}"
        self._session = open_session(file, session_options(file, threads, flag), flag)

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        """Logits `[N, L]` at the batch's matched positions, as `TaskEncoder` gives them."""
        ids = batch.input_ids.cpu()
        mask = torch.ones_like(ids) if batch.mask is None else batch.mask.cpu().long()
        (found,) = self._session.run(
            [OUTPUT], dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        )
        logits = torch.from_numpy(found)
        if not logits.isfinite().all():
            raise ValueError(
                f"{self._name}: its logits are not all finite (NaN or infinite); export the model again"
            )
        if logits.ndim == 3:
            logits = logits.flatten(0, 1).index_select(0, batch.kd_positions.cpu())
        return logits, None


def session_options(file: Path, threads: int, flag: str) -> Any:
    """How onnxruntime is to run a graph on the CPU.

    Raises:
        ValueError: it is not installed.
    """
    options = extra("onnxruntime", f"{flag}: {file.parent} is run by").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # what is missing to use a GPU is of no interest here
    return options


def open_session(file: Path, options: Any, flag: str) -> Any:
    """Let onnxruntime read a graph, to run it on the CPU.

    Raises:
        ValueError: it does not take the file; the reason in one line.
    """
    runtime = extra("onnxruntime", f"{flag}: {file.parent} is run by")
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # one type for each kind of failure, none of them public
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{flag}: cannot load {file}: {reason}") from error


def extra(package: str, what: str) -> Any:
    """Import a package that is only there for exports.

    Args:
        package: its name.
        what: how the message begins where it is missing.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise ValueError(f"{what} {name}: pip install 'comet-distill[export]'") from error
