"""Runs the stages of a plan, some at once, each when what it needs is done; one that fails keeps no other from running.

All that is known of a stage lies on disk. Several processes may therefore work in one folder, also on machines that
share it: each takes the first stage that is ready and that nobody holds the lock of.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from comet.experiments.stage import Attempt, Lock, Stage, last_line, python_modules, record_end
from comet.interruption import Interrupted, StopSignals
from comet.progress import in_words

POLL_SECONDS = 0.2
TELL_SECONDS = 60.0


class Schedule:
    """The stages of a plan on their way.

    Args:
        stages: each after those that it needs.
        jobs: how many of this process run at once.
        say: prints a line.
        python: what starts a module; a test's stand-in.
        changed: called after each end of a stage.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        jobs: int,
        say: Callable[[str], None],
        python: Sequence[str] | None = None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._stages = stages
        self._jobs = jobs
        self._say = say
        self._python = python_modules() if python is None else python
        self._changed = changed
        self._running: dict[int, Attempt] = {}  # by slot
        # failures of before this run, by what was recorded: machines that share a folder have clocks of their own
        self._earlier = {stage.title: stage.record for stage in stages}
        self._told: dict[str, str] = {}
        self._tell_at = time.monotonic() + TELL_SECONDS

    def run(self) -> dict[str, str]:
        """Run until nothing more can be.

        Returns:
            Title → state (done, failed, blocked) of every stage.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the stages have saved and ended.
        """
        with StopSignals() as signals:
            try:
                while True:
                    self._reap()
                    if signals.received:
                        raise self._stop(signals.code)
                    open_elsewhere = self._start_ready()
                    if not self._running and not open_elsewhere:
                        return {stage.title: stage.state(self._earlier) for stage in self._stages}
                    self._tell()
                    time.sleep(POLL_SECONDS)
            finally:
                for attempt in self._running.values():  # a second signal, or an error of ours
                    attempt.signal(signal.SIGKILL)

    def _start_ready(self) -> bool:
        """Start what can be; whether another process has something that is not done yet."""
        busy = False
        own = {attempt.stage.title for attempt in self._running.values()}
        for stage in self._stages:
            if stage.title in own or stage.state(self._earlier) != "ready":
                continue
            if len(self._running) == self._jobs:
                return busy
            lock = Lock.taken(stage)
            if lock is None:
                self._say_once(stage.title, f"{stage.title}: another process is at it")
                busy = True
            elif stage.state(self._earlier) == "ready":
                self._start(stage, lock)
            else:  # it ended between the two looks
                lock.release()
                busy = True
        return busy

    def _start(self, stage: Stage, lock: Lock) -> None:
        if stage.ended_unseen:
            self._ended(stage, record_end(stage, lock, None))
            return
        slot = next(number for number in range(self._jobs) if number not in self._running)
        going_on = ", going on" if stage.record else ""
        try:
            attempt = Attempt(stage, lock, self._python, environment(slot, self._jobs))
        except (ValueError, OSError) as error:
            self._ended(stage, record_end(stage, lock, str(error)))
            return
        self._running[slot] = attempt
        self._say(f"{stage.title}: started{going_on} ({stage.beside('.log')})")

    def _reap(self, *, stopped: bool = False) -> None:
        for slot, attempt in list(self._running.items()):
            record = attempt.ended(stopped=stopped)
            if record is not None:
                del self._running[slot]
                self._ended(attempt.stage, record)

    def _ended(self, stage: Stage, record: dict[str, Any]) -> None:
        took = in_words(record["seconds"])
        why = f": {record['why']}" if "why" in record else f" in {took}"
        self._say(f"{stage.title}: {record['state']}{why}")
        self._changed()

    def _stop(self, code: int) -> Interrupted:
        """Ask what runs to stop, and wait until it has."""
        if self._running:
            self._say("stopping: waiting until what runs has saved")
        for attempt in self._running.values():
            attempt.signal(signal.SIGTERM)
        while self._running:
            self._reap(stopped=True)
            time.sleep(POLL_SECONDS)
        return Interrupted("stopped; the same command goes on", code)

    def _tell(self) -> None:
        """Now and then, the last line of each stage that runs."""
        if time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + TELL_SECONDS
        for attempt in self._running.values():
            line = last_line(attempt.stage)
            if line:
                self._say_once(attempt.stage.title, f"{attempt.stage.title}: {line}")

    def _say_once(self, title: str, line: str) -> None:
        if self._told.get(title) != line:
            self._told[title] = line
            self._say(line)


def environment(slot: int, jobs: int) -> dict[str, str]:
    """What keeps stages that run at once apart: a share of the cores, and a GPU each where there are several."""
    if jobs == 1:
        return {}
    found = {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    devices = torch.cuda.device_count()
    if devices > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(devices)]
        found["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    return found
