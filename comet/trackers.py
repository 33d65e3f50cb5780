"""TensorBoard and Weights & Biases, through Accelerate's trackers: where metrics go beside metrics.jsonl.

TensorBoard's files lie in the run folder under `tensorboard`. W&B's project is `comet-distill` unless WANDB_PROJECT
names another; WANDB_MODE=offline keeps its files in the run folder until `wandb sync` sends them. A resumed run goes on
in the same curves: TensorBoard forgets the steps that are done again, and W&B, which keeps the first value of a step,
is given the same run id.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from comet.durable import write_text
from comet.environment import versions

PROJECT = "comet-distill"
RECORD = "tracking.json"
_MACHINE = ("tokens_per_second", "peak_memory")


class Trackers:
    """Where a run's metrics are also sent; every method is called by all processes, the main one alone writes.

    Args:
        names: any of `tensorboard` and `wandb`; none is fine.
        folder: of the run; nothing is written before `start`.

    Raises:
        ValueError: a package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        for name, version in versions(names).items():
            if version is None:
                raise ValueError(
                    f"run.trackers: {name} is not installed; pip install {name}, or comet-distill[tracking]"
                )
        self._names = names
        self._folder = folder
        self._accelerator: Accelerator | None = None

    def start(self, accelerator: Accelerator, recipe: Any, step: int = 0) -> None:
        """Begin, or go on with what an interrupted process began.

        Args:
            accelerator: what the trackers hang on.
            recipe: a dataclass of dataclasses, kept with the metrics.
            step: done so far; what was tracked of later steps is to be forgotten.

        Raises:
            ValueError: W&B cannot be reached, or nobody is logged in.
        """
        self._accelerator = accelerator
        accelerator.log_with = [self._make(name, step, accelerator) for name in self._names]
        config = None if step else flat(recipe)
        try:
            accelerator.init_trackers(PROJECT, config)
        except Exception as error:
            # W&B's errors have a base class of its own, known only where it is installed
            if type(error).__module__.split(".")[0] != "wandb":
                raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(
                f"run.trackers: wandb: {reason}; or set WANDB_MODE=offline, and `wandb sync` later"
            ) from error

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Send a line of metrics.jsonl: `train/loss`, `train/kd/hau`, `machine/tokens_per_second`."""
        groups = {name: "machine" if name in _MACHINE else "train" for name in metrics}
        del groups["step"]
        self._log({f"{group}/{name}": metrics[name] for name, group in groups.items()}, metrics)

    def log_evaluation(self, step: int, found: Mapping[str, Mapping[str, float | None]]) -> None:
        """Send an evaluation, language → name → value, as `held-out/hau/kl`; None is left out."""
        values = {
            f"held-out/{language}/{name}": value
            for language, measured in found.items()
            for name, value in measured.items()
            if value is not None
        }
        self._log(values, {"step": step})

    def close(self) -> None:
        """Write what is still held back."""
        if self._accelerator is not None:
            # not its end_training, which also ends the communication between processes
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def _log(self, values: dict[str, Any], at: Mapping[str, Any]) -> None:
        if self._accelerator is not None:
            self._accelerator.log(values, step=at["step"])

    def _make(self, name: str, step: int, accelerator: Accelerator) -> GeneralTracker:
        if name == "tensorboard":
            purge = {"purge_step": step + 1} if step else {}
            return TensorBoardTracker("tensorboard", self._folder, **purge)
        identity = self._wandb_id() if accelerator.is_main_process else None
        return WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._folder.name,
            id=identity,
            resume="allow",
            dir=self._folder,
        )

    def _wandb_id(self) -> str:
        """The run's id with W&B: made once, kept in the run folder."""
        record = self._folder / RECORD
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # absent or damaged
            return str(json.loads(record.read_text(encoding="utf-8"))["wandb"])
        identity = os.urandom(6).hex()
        write_text(record, json.dumps({"wandb": identity}) + "\n")
        return identity


def flat(recipe: Any) -> dict[str, Any]:
    """A recipe as `part.field` → number, text, truth value or None; anything longer as JSON."""
    return {
        f"{part}.{name}": value
        if value is None or isinstance(value, (bool, int, float, str))
        else json.dumps(value)
        for part, fields in dataclasses.asdict(recipe).items()
        for name, value in fields.items()
    }
