"""The run folder: recipe, record of versions and outcome, metrics; what another run wrote there is never overwritten.

recipe.yaml          the resolved recipe: running it again repeats the run
run.json             versions, commit, hardware, start, end, state: running | done | failed (and why)
metrics.jsonl        one line per logged step
checkpoints/step-N/  resumable
"""

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import comet
from comet.checkpoints import checkpoints
from comet.configuration import Given, build, contradiction, read_recipe, to_yaml
from comet.environment import commit, peak_resident_bytes, versions

RECIPE, RECORD, METRICS = "recipe.yaml", "run.json", "metrics.jsonl"
_PACKAGES = ("torch", "triton", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


class RunFolder:
    """A folder that holds one run; nothing is written before `recorded`.

    Args:
        path: the folder.
        recipe: the resolved recipe.
        resume: go on with the run that is there instead of starting one.

    Raises:
        ValueError: the folder holds another run or other files, or, to resume, no run that stopped half-way.
    """

    def __init__(self, path: Path, recipe: Any, *, resume: bool) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._recipe = recipe
        if resume:
            self._require_resumable()
        else:
            self._require_empty()

    @contextlib.contextmanager
    def recorded(self, **facts: Any) -> Iterator[None]:
        """Write the recipe and keep run.json: `running` inside, `done` after, `failed` with the reason.

        Args:
            facts: more to record, as JSON.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # without its own folder, so that running it again does not run into this one
        recipe = dataclasses.replace(
            self._recipe, run=dataclasses.replace(self._recipe.run, output=None)
        )
        (self.path / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
        record = {"state": "running", "start": _now(), **_environment(), **facts}
        self._write_record(record)
        try:
            yield
        except BaseException as error:
            reason = str(error) or type(error).__name__
            with contextlib.suppress(OSError):
                self._write_record({**record, "state": "failed", "why": reason, "end": _now()})
            raise
        self._write_record({**record, "state": "done", "end": _now()})

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run does again."""
        path = self.path / METRICS
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            path.write_text("".join(kept), encoding="utf-8")

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(partial, self.path / name)

    def _write_record(self, record: dict[str, Any]) -> None:
        self.write_json(RECORD, record)

    def _require_empty(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"--output: {self.path} is a file; give a folder")
        if (self.path / RECIPE).exists():
            advice = "add --resume to go on with it, or " if checkpoints(self.checkpoints) else ""
            raise ValueError(
                f"--output: {self.path} holds another run; {advice}give another --output"
            )
        if any(self.path.iterdir()):
            raise ValueError(f"--output: {self.path} holds other files; give an empty folder")

    def _require_resumable(self) -> None:
        record = self.path / RECORD
        if json.loads(record.read_text(encoding="utf-8")).get("state") == "done":
            raise ValueError(f"--resume: the run in {self.path} is done")


def resolve(recipe_class: type, given: Given, program: str) -> tuple[Path, Any]:
    """The run folder and the recipe of a command; a resumed run keeps the recipe that lies in its folder.

    Raises:
        ValueError: to resume, another value was given than the run has.
    """
    output = given.content.get("run", {}).get("output")
    name = Path(given.recipe).stem if given.recipe else program.split(".")[-1]
    folder = Path(output) if output else _numbered(Path("runs") / name, resume=given.resume)
    content = given.content
    if given.resume:
        if not (folder / RECIPE).is_file():
            raise ValueError(f"--resume: {folder} holds no run; check --output")
        stored = read_recipe(recipe_class, str(folder / RECIPE))
        stored.setdefault("run", {})["output"] = output
        difference = contradiction(given.content, stored)
        if difference:
            raise ValueError(f"--resume: a run keeps its recipe, but {difference}")
        content = stored
    return folder, build(recipe_class, content)


def _numbered(folder: Path, *, resume: bool) -> Path:
    """Where a run goes that was given no folder: NAME, NAME-2, ...; the first that is free or, to resume, the last."""
    candidates = itertools.chain(
        [folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    )
    last = folder
    for candidate in candidates:
        if not candidate.exists():
            return last if resume else candidate
        last = candidate
    raise AssertionError("numbers do not end")


def peak_memory() -> int:
    """Bytes at most so far: allocated on the GPU where there is one, resident in this process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def _environment() -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "versions": {"python": platform.python_version(), "comet": comet.__version__}
        | versions(_PACKAGES),
        "commit": commit(),
        "hardware": hardware,
        "command": sys.argv,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
