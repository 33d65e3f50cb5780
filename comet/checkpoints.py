"""Checkpoints: everything training needs to go on, written aside and renamed, as safetensors and JSON (no pickle).

step-N/tensors.safetensors   model, projection, optimizers, random generators, sums since the last logged line
step-N/state.json            step, position in the corpus, schedules, the recipe
step-N/checksums.json        SHA-256 of both, format, version of Comet
"""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comet.durable import checksum, discard_folder, folder_aside, sweep, writing
from comet.formats import NewerFormatError, require_known_format, stamp

FORMAT = 2  # 1 had no number, and named neither inputs nor environment
TENSORS, STATE, CHECKSUMS = "tensors.safetensors", "state.json", "checksums.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint's files are not those that were written."""


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
    final, there = folder / f"step-{step}", checkpoints(folder)
    last = f"the last good checkpoint is {there[-1].name}" if there else "there is none before it"
    advice = f"{last}; make room, or make the folder writable, and resume with --resume"
    sweep(folder)  # after a run that was killed while it saved
    with writing(final, advice), folder_aside(final) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial / TENSORS)
        (partial / STATE).write_text(json.dumps(dict(state)), encoding="utf-8")
        sums = {name: checksum(partial / name) for name in (TENSORS, STATE)}
        (partial / CHECKSUMS).write_text(json.dumps(stamp(FORMAT) | sums), encoding="utf-8")
    prune(folder, keep)
    return final


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, unless somebody has put something into one."""
    for old in checkpoints(folder)[:-keep]:
        if {path.name for path in old.iterdir()} <= {TENSORS, STATE, CHECKSUMS}:  # nobody else's
            discard_folder(old)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, on the CPU, and the state.

    Raises:
        DamagedCheckpointError: a file is missing or is not what was written.
        NewerFormatError: a later version of Comet wrote it.
    """
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        require_known_format(f"--resume: {path}", sums, FORMAT)
        for name in (TENSORS, STATE):
            if sums[name] != checksum(path / name):
                raise DamagedCheckpointError(
                    f"{path / name} is not what was written: its checksum differs"
                )
        return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))
    except (DamagedCheckpointError, NewerFormatError):
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error})"
        ) from error


def choose_checkpoint(folder: Path, step: int | None) -> Path | None:
    """The checkpoint a run goes on from: the newest, or that of `step`; None where a run has none yet.

    Raises:
        ValueError: there is none of that step.
    """
    there = checkpoints(folder)
    if step is None:
        return there[-1] if there else None
    for path in there:
        if path.name == f"step-{step}":
            return path
    names = ", ".join(path.name for path in there) or "none"
    raise ValueError(f"--resume-from: got {step}, but the checkpoints in {folder} are {names}")


def load_chosen(folder: Path, step: int | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the checkpoint a run goes on from; None where it has none yet. Newer ones are set aside, not removed.

    Raises:
        ValueError: it is damaged; the message offers the one before it.
    """
    chosen = choose_checkpoint(folder, step)
    if chosen is None:
        return None
    there = checkpoints(folder)
    try:
        loaded = load_checkpoint(chosen)
    except DamagedCheckpointError as error:
        earlier = there[: there.index(chosen)]
        advice = (
            f"go on from the one before it with --resume-from {earlier[-1].name[5:]}"
            if earlier
            else "there is none before it, so the run has to start again"
        )
        raise ValueError(
            f"--resume: checkpoint {chosen.name} is damaged; {advice} ({error})"
        ) from error
    for newer in there[there.index(chosen) + 1 :]:
        set_aside = newer.with_name(f"{newer.name}.set-aside")
        shutil.rmtree(set_aside, ignore_errors=True)
        newer.rename(set_aside)
    return loaded


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


def random_tensors(process: int) -> dict[str, Tensor]:
    """State of one process's generators: torch's, which dropout draws from, numpy's and Python's."""
    kind, keys, *numbers = np.random.get_state()
    assert kind == "MT19937"
    _, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy-numbers": torch.tensor(numbers, dtype=torch.float64),
        "python": torch.tensor(words, dtype=torch.int64),
        "python-gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {f"random/{process}/{name}": value for name, value in states.items()}


def restore_random(tensors: Mapping[str, Tensor], process: int) -> None:
    """Give one process's generators their saved state back; a process that was not there then keeps its own."""
    prefix = f"random/{process}/"
    states = {
        name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)
    }
    if not states:
        return
    torch.set_rng_state(states["torch"])
    place, has_gauss, gauss = states["numpy-numbers"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), gauss))
    gausses = states["python-gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gausses[0] if gausses else None))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
