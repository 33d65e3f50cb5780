"""The run folder: recipe, record of versions and outcome, metrics; what another run wrote there is never overwritten.

recipe.yaml          the resolved recipe: running it again repeats the run
run.json             versions, commit, hardware, end, state: running | done | failed (and why), of the latest segment;
                     start of the first; `segments`, the same of each time that it was started or resumed
metrics.jsonl        one line per logged step
evaluation.jsonl     one line per evaluation on held-out text
checkpoints/step-N/  resumable

Several processes share one folder: only the main one writes.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from comet.configuration import Given, build, contradiction, read_recipe, to_yaml
from comet.durable import LOCK, is_as_good_as_empty, locked, sweep, write_text, writing
from comet.environment import differences, environment, peak_resident_bytes
from comet.holdings import instead, refuse_other_run
from comet.inputs import Input, changed_inputs, saved_inputs
from comet.interruption import Interrupted
from comet.names import path_component
from comet.processes import failed_elsewhere, on_main, recording, say, this_process

RECIPE, RECORD, METRICS, EVALUATION = "recipe.yaml", "run.json", "metrics.jsonl", "evaluation.jsonl"
_ADVICE = "make room or the folder writable; what is there stays, and a run with a checkpoint resumes with --resume"
MAY_CHANGE = frozenset(  # on resuming, as it changes no result
    {
        "corpus.workers",
        "optimisation.accumulation",
        "optimisation.gradient_checkpointing",
        "run.keep_checkpoints",
        "run.output",
        "run.trackers",
        "student.allow_larger",
    }
)


LENGTHS = (
    "optimisation.steps",
    "optimisation.epochs",
)  # may change too: a run is extended, or ended sooner


class RunFolder:
    """A folder that holds one run; nothing is written before `recorded`.

    Args:
        path: the folder.
        recipe: the resolved recipe.
        resume: go on with the run that is there instead of starting one.

    Attributes:
        is_done: whether there is nothing to resume.

    Raises:
        ValueError: the folder holds another run or other files, or, to resume, a run that has done more than is asked.
    """

    def __init__(self, path: Path, recipe: Any, *, resume: bool) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.is_written_here = this_process().is_main_process
        # without its own folder, so that running it again does not run into this one
        run = dataclasses.replace(recipe.run, output=None)
        self.recipe = dataclasses.replace(recipe, run=run)
        self.inputs: dict[str, Input] = {}
        self._before: dict[str, Any] = {}
        self._record: dict[str, Any] = {}
        self._resume = resume
        self.is_done = on_main(self._is_done)

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, commit and hardware of this segment of the run."""
        return environment(this_process().num_processes)

    @contextlib.contextmanager
    def recorded(self, **facts: Any) -> Iterator[None]:
        """Write the recipe and keep run.json: `running` inside, then `done`, `stopped` or `failed` with the reason.

        Args:
            facts: more to record, as JSON.

        Raises:
            ValueError: another process trains in this folder.
            OSError: it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            on_main(lambda: self._begin(stack, facts))
            stack.enter_context(recording(self.path, self._fail))
            try:
                yield
            except BaseException as error:
                if isinstance(error, RuntimeError):
                    failed_elsewhere(5)  # of which it may be a consequence
                state = "stopped" if isinstance(error, Interrupted) else "failed"
                with contextlib.suppress(OSError):
                    self._end(state=state, why=str(error) or type(error).__name__)
                raise
            self._end(state="done")

    def _fail(self, why: str) -> None:
        self._end(state="failed", why=why)

    def _begin(self, stack: contextlib.ExitStack, facts: Mapping[str, Any]) -> None:
        """Take the folder's lock, until the stack ends, and write the recipe and the record."""
        stack.enter_context(
            locked(self.path / LOCK, f"--output: another process is training in {self.path}")
        )
        if self._is_done():  # again: another process may have run here meanwhile
            raise ValueError(f"--resume: another process has finished the run in {self.path}")
        sweep(self.path)
        sweep(self.checkpoints)
        self._write(RECIPE, to_yaml(self.recipe))
        self._before = read_record(self.path)
        self._record = begun(self._before, {**self.environment, "command": sys.argv})
        self._record |= {
            **facts,
            "length": length_of(self.recipe),
            "inputs": self.inputs_as_json,
        }
        self.write_json(RECORD, self._record)

    def begin_at(self, step: int) -> None:
        """Record the steps that were done when this segment of the run began to train."""
        if self._record:
            self._record["segments"][-1]["step"] = step
            self.write_json(RECORD, self._record)

    def note(self, **facts: Any) -> None:
        """Keep facts, as JSON, that run.json records at the run's end."""
        if self._record:
            self._record |= facts

    def reads(self, inputs: Mapping[str, Input]) -> None:
        """Name what the run reads; all processes call this.

        Raises:
            ValueError: the run in the folder, which is to be resumed, read something else.
        """

        def compare() -> None:
            self._before = self._before or read_record(self.path)
            before = saved_inputs(self._before.get("inputs"))
            self._require_same(before, inputs)
            self.inputs = {**before, **self.inputs}

        on_main(compare)
        self.inputs |= inputs
        self.note(inputs=self.inputs_as_json)

    @property
    def inputs_as_json(self) -> dict[str, Any]:
        """What the run reads, for run.json and checkpoints."""
        return {name: one._asdict() for name, one in self.inputs.items()}

    def require_same_inputs(self, saved: Any) -> None:
        """Refuse to resume from a checkpoint of a run that read something else.

        Args:
            saved: inputs as the checkpoint has them; None of a version that did not name them.

        Raises:
            ValueError: something differs.
        """
        if saved is None:
            say(
                "warning: the checkpoint is of an earlier version, which did not note what a run reads: whether text, "
                "models and data are the same as before is not known"
            )
            return
        before = saved_inputs(saved)
        self._require_same(before, self.inputs)
        times = [
            name
            for name in self.inputs.keys() & before
            if before[name].times != self.inputs[name].times
        ]
        if times:
            say(
                f"warning: {' and '.join(times)}: large files have other times than before, as copies have; sizes and "
                "sampled content are the same, but an edit of a few lines between the samples would not be seen"
            )

    def _require_same(self, before: Mapping[str, Input], now: Mapping[str, Input]) -> None:
        changed = changed_inputs(before, now)
        if changed:
            was, there = before[changed[0]].source, now[changed[0]].source
            place = there if was == there else f"{there}, before {was}"
            more = f", and {', '.join(changed[1:])}" if changed[1:] else ""
            raise ValueError(
                f"--resume: {changed[0]} ({place}){more}: not what the run in {self.path} read before; resume with "
                "the same, or start a new run with another --output"
            )

    def tell_differences(self, before: Mapping[str, Any] | None) -> None:
        """Say in a line what changed since a checkpoint was written that can change the last bits of the result.

        Args:
            before: the environment as the checkpoint has it; None where that names none, so that run.json's counts.
        """
        found = differences(before or (segments_of(self._before) or [{}])[-1], self.environment)
        if found:
            say(
                f"warning: resumed with {', '.join(found)}: the result may differ in its last bits from that of a run "
                "that was not stopped"
            )

    def _end(self, **outcome: str) -> None:
        if not self._record:  # of another process
            return
        outcome["end"] = _now()
        self._record["segments"][-1] |= outcome
        self.write_json(RECORD, self._record | outcome)

    def log(self, line: Mapping[str, Any], name: str = METRICS) -> None:
        """Append one line to metrics.jsonl, or to another such file.

        Raises:
            OSError: the disk is full.
        """
        if not self.is_written_here:
            return
        text = json.dumps(dict(line), allow_nan=False) + "\n"
        with (
            writing(self.path / name, _ADVICE),
            (self.path / name).open("a", encoding="utf-8") as file,
        ):
            file.write(text)

    def forget_lines_after(self, step: int, evaluated: int) -> None:
        """Drop the lines of steps that a resumed run does again, and half lines.

        Args:
            step: the last one whose metrics stay.
            evaluated: the last one whose evaluation stays.
        """
        if not self.is_written_here:
            return
        for name, last in ((METRICS, step), (EVALUATION, evaluated)):
            if (self.path / name).exists():
                lines = (self.path / name).read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if _is_of_steps_to(last, line)]
                self._write(name, "".join(kept))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        self._write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read such a file; every process gets it."""
        return on_main(lambda: json.loads((self.path / name).read_text(encoding="utf-8")))

    def _write(self, name: str, text: str) -> None:
        if not self.is_written_here:
            return
        with writing(self.path / name, _ADVICE):
            write_text(self.path / name, text)

    def _require_empty(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"--output: {self.path} is a file; give a folder")
        if (self.path / RECIPE).exists():
            is_done = read_record(self.path).get("state") == "done"
            advice = "" if is_done else "add --resume to go on with it, or "
            raise ValueError(
                f"--output: {self.path} holds another run; {advice}give another --output"
            )
        if not is_as_good_as_empty(self.path):
            raise ValueError(f"--output: {self.path} holds other files; give an empty folder")

    def _is_done(self) -> bool:
        if not self._resume:
            self._require_empty()
            return False
        return is_finished(self.path, self.recipe)

    def how_to_extend(self, program: str) -> str:
        """Say that the run is done, and what to type for more of it."""
        (name, length), *_ = length_of(self.recipe).items()
        return (
            f"done     the run in {self.path} has done its {length:,} {name}; for more, python -m {program} --resume "
            f"--output {self.path} --{name} {2 * length}"
        )


def length_of(recipe: Any) -> dict[str, int]:
    """The steps or epochs of a recipe, by name."""
    names = (one.split(".")[1] for one in LENGTHS)
    return {
        name: getattr(recipe.optimisation, name)
        for name in names
        if hasattr(recipe.optimisation, name)
    }


def is_finished(folder: Path, recipe: Any) -> bool:
    """Whether the run in a folder has ended well, and with as many steps or epochs as its recipe has now.

    Raises:
        ValueError: it has done more.
    """
    record = read_record(folder)
    if record.get("state") != "done":
        return False
    wanted, done = length_of(recipe), record.get("length")
    if not isinstance(done, Mapping):  # of an earlier version, which extended nothing
        done = read_recipe(type(recipe), str(folder / RECIPE)).get("optimisation", {})
    for name, length in wanted.items():
        if done.get(name, length) > length:
            raise ValueError(
                f"--resume: optimisation.{name}: got {length}, but the run in {folder} has done {done[name]}; give "
                "more to extend it"
            )
    return all(done.get(name, length) == length for name, length in wanted.items())


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run; empty where it cannot be read, so that the run counts as killed at its very start."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_of_steps_to(last: int, line: str) -> bool:
    """Whether a line of metrics is whole and of a step up to the last one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return False
    return line.endswith("\n") and isinstance(step, int) and step <= last


def begun(before: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that is started, or resumed after what its record says of before.

    Args:
        before: that record; empty where the run is new.
        environment: of this segment.
    """
    segments = [dict(one) for one in segments_of(before)]
    for one in segments:
        if one.get("state") == "running":  # nobody lived to record its end
            one["state"] = "killed"
    segment = {"state": "running", "start": _now(), **environment}
    start = before.get("start", segment["start"])
    return {**segment, "start": start, "segments": [*segments, segment]}


def segments_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What run.json says of each time that a run was started or resumed: start, end, state, versions, hardware."""
    found = record.get("segments")
    if isinstance(found, list):
        return [one for one in found if isinstance(one, Mapping)]
    whole = ("state", "why", "start", "end", "versions", "commit", "hardware", "command")
    return [{name: record[name] for name in whole if name in record}] if record else []


def resolve(recipe_class: type, given: Given, program: str) -> tuple[Path, Any]:
    """The run folder and the recipe of a command; a resumed run keeps the recipe that lies in its folder.

    Raises:
        ValueError: to resume, another value was given than the run has, of a kind that would change its result.
    """
    return on_main(lambda: _resolve(recipe_class, given, program))


def _resolve(recipe_class: type, given: Given, program: str) -> tuple[Path, Any]:
    output = given.content.get("run", {}).get("output")
    name = Path(given.recipe).stem if given.recipe else program.split(".")[-1]
    name = path_component(name, "--recipe") if output is None else name
    folder = Path(output) if output else _numbered(Path("runs") / name, resume=given.resume)
    if not given.resume:
        return folder, build(recipe_class, given.content)
    if is_as_good_as_empty(folder):
        raise ValueError(
            f"--resume: {folder} holds no run yet, as it ended before its first file was written; start it again "
            "without --resume"
        )
    if not (folder / RECIPE).is_file():
        raise ValueError(
            f"--resume: {folder} holds no run{instead(folder, 'stopped run')}; check --output, or leave out "
            "--resume"
        )
    refuse_other_run(folder, program)
    stored = read_recipe(recipe_class, str(folder / RECIPE))
    stored.setdefault("run", {})["output"] = output
    for part, fields in given.content.items():
        free = {
            name: value
            for name, value in fields.items()
            if f"{part}.{name}" in MAY_CHANGE or f"{part}.{name}" in LENGTHS
        }
        stored.setdefault(part, {}).update(free)
    difference = contradiction(given.content, stored)
    if difference:
        raise ValueError(f"--resume: a run keeps its recipe, but {difference}")
    return folder, build(recipe_class, stored)


def require_same_recipe(recipe: Any, saved: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another recipe.

    Raises:
        ValueError: the two differ in what changes the result.
    """
    ours = yaml.safe_load(to_yaml(recipe))
    fixed = {
        part: {
            field: value
            for field, value in fields.items()
            # a field that is missing there is of a later version, and has its default here
            if field in saved.get(part, {})
            and f"{part}.{field}" not in MAY_CHANGE
            and f"{part}.{field}" not in LENGTHS
        }
        for part, fields in ours.items()
    }
    difference = contradiction(fixed, saved)
    if difference:
        raise ValueError(f"--resume: the checkpoint is of another recipe: {difference}")


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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
