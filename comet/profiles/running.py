"""A model as one call that takes token ids and a mask, whatever runs it: torch, or onnxruntime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comet.onnx_encoder import GRAPH, open_session, session_options
from comet.pretrained import load_model
from comet.profiles.models import Model

Run = Callable[[NDArray[np.int64], NDArray[np.int64]], object]
"""Token ids `[B, S]` and mask `[B, S]`, 1 on real tokens → what the model says; it is there when the call returns."""


def open_model(model: Model, device: torch.device, threads: int, *, flag: str = "--model") -> Run:
    """Load a model, or make one of random weights. All weights are in memory afterwards.

    Args:
        model: of `find`.
        device: that runs it.
        threads: of onnxruntime; torch's are the process's.
        flag: the option that named the model, for messages.

    Raises:
        ValueError: it cannot be loaded, or does not run on this device.
    """
    if model.runtime == "onnxruntime":
        return _open_onnx(model, device, threads, flag)
    return _open_torch(model, device, flag)


def _open_torch(model: Model, device: torch.device, flag: str) -> Run:
    if model.folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loaded: Any = model.kind(model.config)
    else:
        loaded, _ = load_model(model.kind, str(model.folder), config=model.config, flag=flag)
    loaded = loaded.to(device).eval()
    for parameter in loaded.parameters():
        parameter.sum()  # files are mapped into memory: now, and not when a weight is first used
    called = loaded.base_model if model.is_masked_lm else loaded

    @torch.inference_mode()
    def run(ids_BS: NDArray[np.int64], mask_BS: NDArray[np.int64]) -> object:
        said = called(
            input_ids=torch.from_numpy(ids_BS).to(device),
            attention_mask=torch.from_numpy(mask_BS).to(device),
        )[0]
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return said

    return run


def _open_onnx(model: Model, device: torch.device, threads: int, flag: str) -> Run:
    if device.type != "cpu":
        raise ValueError(
            f"--device: {model.name} is an ONNX model, which is measured on the CPU alone"
        )
    assert model.folder is not None
    file = model.folder / GRAPH
    session = open_session(file, session_options(file, threads, flag), flag)
    wanted = {one.name for one in session.get_inputs()}
    known = {"input_ids", "attention_mask", "token_type_ids"}
    if not wanted <= known:
        raise ValueError(
            f"{flag}: {file} wants {', '.join(sorted(wanted - known))}; only "
            f"{', '.join(sorted(known))} can be given"
        )

    def run(ids_BS: NDArray[np.int64], mask_BS: NDArray[np.int64]) -> object:
        given = {"input_ids": ids_BS, "attention_mask": mask_BS}
        if "token_type_ids" in wanted:
            given["token_type_ids"] = np.zeros_like(ids_BS)
        return session.run(None, {name: value for name, value in given.items() if name in wanted})

    return run


def sample(model: Model, batch: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random token ids `[B, S]` without padding, the same at every call, and their mask."""
    generator = np.random.default_rng(0)
    ids_BS = generator.integers(4, model.config.vocab_size, (batch, length))
    padding = getattr(model.config, "pad_token_id", None)
    ids_BS[ids_BS == padding] = 3 if padding != 3 else 2  # RoBERTa counts positions by it
    return ids_BS, np.ones_like(ids_BS)
