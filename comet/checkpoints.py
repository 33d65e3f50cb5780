"""Checkpoints: everything training needs to go on, written aside and renamed, as safetensors and JSON (no pickle)."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TENSORS = "tensors.safetensors"
STATE = "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `folder/step-N`; it appears whole or not at all. All but the `keep` newest are then removed.

    Args:
        folder: where checkpoints lie; made if missing.
        step: steps done.
        tensors: by name, none sharing memory with another.
        state: JSON.
        keep: how many checkpoints stay.

    Raises:
        OSError: the disk is full or the folder cannot be written; earlier checkpoints stay as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial, final = folder / f".step-{step}.partial", folder / f"step-{step}"
    try:
        partial.mkdir(exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial / TENSORS)
        (partial / STATE).write_text(json.dumps(dict(state)), encoding="utf-8")
        replace_folder(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, on the CPU, and the state.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    try:
        return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))
    except Exception as error:  # safetensors has an exception type of its own, not a ValueError
        raise ValueError(
            f"--resume: checkpoint {path} cannot be read ({type(error).__name__}: {error}); delete that "
            "folder to go on from the one before it"
        ) from error


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and persistent buffers, by name."""
    persistent = module.state_dict().keys()
    buffers = {name: value for name, value in module.named_buffers() if name in persistent}
    return {f"module/{name}": value.detach() for name, value in module.named_parameters()} | {
        f"module/{name}": value for name, value in buffers.items()
    }


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a module of the same shape.

    Raises:
        ValueError: names or shapes differ.
    """
    targets = module_tensors(module)
    saved = {name: value for name, value in tensors.items() if name.startswith("module/")}
    if {name: value.shape for name, value in targets.items()} != {
        name: value.shape for name, value in saved.items()
    }:
        raise ValueError("--resume: the checkpoint is of a model of another shape")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, by the parameter's number."""
    return {
        f"optimizer/{name}/{number}/{key}": value
        for number, remembered in optimizer.state_dict()["state"].items()
        for key, value in remembered.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, name: str, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer back what it remembered; its learning rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        if path.startswith(f"optimizer/{name}/"):
            _, _, number, key = path.split("/")
            state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_tensors() -> dict[str, Tensor]:
    """State of torch's generators, which dropout draws from."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random(tensors: Mapping[str, Tensor]) -> None:
    """Give torch's generators their saved state back."""
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])


def replace_folder(partial: Path, final: Path) -> None:
    """Put a folder that was written aside into its place, durably."""
    for path in (*partial.rglob("*"), partial):
        _synchronise(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _synchronise(final.parent)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
