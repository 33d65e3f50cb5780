"""One stage of an experiment: a command in a process of its own, its log, its record, its lock.

Beside a stage's folder `X` lie

    X.yaml   the recipe it was started with
    X.log    what it printed, of all attempts
    X.json   its record: state (running | done | failed | stopped), seconds over all attempts, and why it failed
    .X.lock  held while it runs, by the process that watches it and by the command itself

The lock goes with the command: where the watching process was killed and the command still ends its step and saves,
nobody else starts it.
"""

import ctypes
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import yaml

from comet.configuration import contradiction
from comet.durable import write_json, write_text
from comet.environment import environment_of_one
from comet.experiments.written import Content
from comet.runs import RECIPE, read_record
from comet.teacher_cache import INDEX

State = Literal["done", "failed", "blocked", "ready", "waiting"]
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Stage:
    """A command, what it needs, and how one sees that it is done.

    Attributes:
        cell: the cell it belongs to, None where cells share it.
        name: what it does, as in `distill`.
        program: the module that is run.
        path: the folder that it writes.
        content: its recipe, once all that it needs is done; None for a command that takes flags alone.
        flags: more of its command line.
        beside_runs: flag, folder and stage of what it is measured against; left out where that failed.
        needs: stages that come before it.
        prepare: called before its first start.
        remark: said in a dry run.
    """

    cell: str | None
    name: str
    program: str
    path: Path
    content: Callable[[], Content] | None = None
    flags: tuple[str, ...] = ()
    needs: tuple["Stage", ...] = ()
    prepare: Callable[[], None] | None = field(default=None, compare=False)
    remark: str = ""
    beside_runs: tuple[tuple[str, str, "Stage"], ...] = ()

    @property
    def title(self) -> str:
        """How it is called in what is printed."""
        return f"{self.cell}: {self.name}" if self.cell is not None else self.name

    def beside(self, ending: str) -> Path:
        """A file beside the folder."""
        return self.path.with_name(f"{self.path.name}{ending}")

    @property
    def record(self) -> dict[str, Any]:
        """What is known of it; empty before its first start."""
        return read_json(self.beside(".json"))

    @property
    def is_done(self) -> bool:
        """Whether it ended well; a command of flags alone also with the same ones."""
        record = self.record
        if record.get("state") != "done":
            return False
        flags = self.all_flags
        return self.content is not None or record["command"][-len(flags) :] == flags

    @property
    def all_flags(self) -> list[str]:
        """Those that it always has, and those of what it is measured against, as far as that is done."""
        found = [(flag, folder) for flag, folder, stage in self.beside_runs if stage.is_done]
        return [*self.flags, *(word for pair in found for word in pair)]

    @property
    def ended_unseen(self) -> bool:
        """Whether it ended well by what it wrote, though nobody lived to record it."""
        if self.content is None:
            return False
        return (
            read_record(self.path).get("state") == "done"
            or read_json(self.path / INDEX).get("complete") is True
        )

    @property
    def has_begun(self) -> bool:
        """Whether its folder holds something to go on from."""
        return any((self.path / name).is_file() for name in (RECIPE, INDEX))

    def state(self, earlier: Mapping[str, Any]) -> State:
        """Where it stands, as it lies on disk.

        Args:
            earlier: title → record of failures that count no more: those stages are tried again.
        """
        if self.is_done:
            return "done"
        record = self.record
        if record.get("state") == "failed" and record != earlier.get(self.title):
            return "failed"
        states = [need.state(earlier) for need in self.needs]
        if "failed" in states or "blocked" in states:
            return "blocked"
        settled = [
            stage.state(earlier) in ("done", "failed", "blocked") for *_, stage in self.beside_runs
        ]
        return "ready" if all(state == "done" for state in states) and all(settled) else "waiting"

    def command(self) -> list[str]:
        """The command line, after `python -m`."""
        if self.content is None:
            return [self.program, *self.all_flags]
        if (self.path / RECIPE).is_file():
            return [self.program, "--resume", "--output", str(self.path)]
        recipe = ["--recipe", str(self.beside(".yaml"))]
        return [self.program, *recipe, *self.flags, "--output", str(self.path)]

    def require_same(self, content: Content) -> None:
        """Refuse to go on with a stage that was begun with another recipe.

        Raises:
            ValueError: a field differs; the message names it.
        """
        if not self.has_begun or not self.beside(".yaml").is_file():
            return
        begun = yaml.safe_load(self.beside(".yaml").read_text(encoding="utf-8")) or {}
        difference = contradiction(content, begun) or contradiction(begun, content)
        if difference:
            raise ValueError(
                f"{self.title}: it was begun with another recipe: {difference}; give another --output, or "
                f"remove {self.path} and {self.beside('.yaml')}"
            )


class Lock:
    """A stage's lock, or None from `taken` where another process has it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @staticmethod
    def taken(stage: Stage) -> "Lock | None":
        """Take it, without waiting."""
        stage.path.parent.mkdir(parents=True, exist_ok=True)
        path = stage.path.with_name(f".{stage.path.name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return Lock(descriptor)

    def release(self) -> None:
        """Give it back."""
        os.close(self.descriptor)


class Attempt:
    """A stage that runs.

    Args:
        stage: what needs are done, and whose lock is held.
        lock: that lock; handed to the command, and released at the end.
        python: what starts a module, such as `[sys.executable, "-m"]`.
        environment: beside this process's own.

    Raises:
        ValueError: its recipe cannot be made, or is not the one it was begun with.
    """

    def __init__(
        self, stage: Stage, lock: Lock, python: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.stage = stage
        self._lock = lock
        self._before = _seconds_so_far(stage)
        self._clock = time.perf_counter()
        _write_recipe(stage)
        command = [*python, *stage.command()]
        self._record = {
            "state": "running",
            "attempts": stage.record.get("attempts", 0) + 1,
            "seconds": round(self._before, 1),
            "start": _now(),
            "host": platform.node(),
            "command": command,
        }
        write_json(stage.beside(".json"), self._record)
        with stage.beside(".log").open("a", encoding="utf-8") as log:
            print("$", *command, file=log, flush=True)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment_of_one(), "PYTHONUNBUFFERED": "1", **environment},
                pass_fds=[lock.descriptor],
                start_new_session=True,  # a terminal's Ctrl-C reaches it through us, once
                preexec_fn=_end_with_parent,
            )

    @property
    def seconds(self) -> float:
        """Of all attempts so far."""
        return self._before + time.perf_counter() - self._clock

    def ended(self, *, stopped: bool) -> dict[str, Any] | None:
        """The record, once the command has ended; None while it runs.

        Args:
            stopped: whether it was asked to.
        """
        code = self.process.poll()
        if code is None:
            return None
        state = "done" if code == 0 else "stopped" if stopped else "failed"
        record = self._record | {
            "state": state,
            "seconds": round(self.seconds, 1),
            "exit_code": code,
            "end": _now(),
        }
        if state == "failed":
            record["why"] = last_line(self.stage) or _how_it_ended(code)
        write_json(self.stage.beside(".json"), record)
        self._lock.release()
        return record

    def signal(self, number: int) -> None:
        """Send a signal to the command, and with SIGKILL to all that it has started."""
        if number == signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)


def record_end(stage: Stage, lock: Lock, why: str | None) -> dict[str, Any]:
    """Record a stage that could not be started, or without a reason, one that had ended well; release its lock."""
    record = {
        **stage.record,
        "attempts": stage.record.get("attempts", 0) + (why is not None) or 1,
        "state": "done" if why is None else "failed",
        "seconds": round(_seconds_so_far(stage), 1),
        "end": _now(),
        **({} if why is None else {"why": why}),
    }
    write_json(stage.beside(".json"), record)
    lock.release()
    return record


def last_line(stage: Stage) -> str:
    """The last line that a stage printed in its latest attempt."""
    try:
        text = stage.beside(".log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines and not lines[-1].startswith("$ ") else ""


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: remove it, and start the same command again")
    return found


def python_modules() -> list[str]:
    """What starts a module."""
    return [sys.executable, "-m"]


def _write_recipe(stage: Stage) -> None:
    if stage.content is None:
        return
    content = stage.content()
    stage.require_same(content)
    if stage.prepare is not None:
        stage.prepare()
    write_text(stage.beside(".yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _seconds_so_far(stage: Stage) -> float:
    """Of earlier attempts; one that nobody saw the end of lasted until it last printed something.

    Both times are of files in one folder: the clock of another machine may differ.
    """
    record = stage.record
    seconds = float(record.get("seconds", 0.0))
    if record.get("state") == "running" and stage.beside(".log").is_file():
        began, printed = (stage.beside(ending).stat().st_mtime for ending in (".json", ".log"))
        seconds += max(0.0, printed - began)
    return seconds


def _end_with_parent() -> None:
    """Let the command get SIGTERM when this process dies, where the system can: it saves and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)


def _how_it_ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
