"""Ctrl-C and SIGTERM while a run trains: the step is finished and a checkpoint saved before the process ends."""

import signal
from types import FrameType
from typing import Any

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it had.

    Args:
        message: how to go on.
        code: the exit code, 128 + the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StopSignals:
    """Within this context the first SIGINT or SIGTERM is only noted; a second one ends the process as usual."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> bool:
        """Whether the run is to stop."""
        return self._received is not None

    @property
    def code(self) -> int:
        """The exit code of a process that stops: that of Ctrl-C where another process was told to."""
        return _CODES[self._received or signal.SIGINT]

    def __enter__(self) -> "StopSignals":
        for number in _CODES:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
