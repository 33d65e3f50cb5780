"""How far a run is: a bar on a terminal, plain lines elsewhere, each with the loss, tokens per second and time left."""

import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from tqdm import tqdm

REMEMBERED = 0.9  # of the rate so far, each time steps are shown
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"  # tqdm's own rate and time left would stand beside ours


class Progress:
    """Shows a run's progress on the terminal, or as lines that a log file keeps; a context manager.

    The time left follows from the rate of this process alone, a mean that forgets: the first steps, which compile
    kernels and fill buffers, soon count little, and evaluations and checkpoints count as often as they come.

    Args:
        steps: of the whole run.
        done: steps done before, by the process that this one resumes.
        remark: added to the loss, such as what it is to be compared with.
        enabled: show anything at all; false in all processes but one.
    """

    def __init__(self, steps: int, done: int, remark: str = "", enabled: bool = True) -> None:
        self._steps = steps
        self._remark = remark
        self._enabled = enabled
        self._terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=done, bar_format=_BAR, disable=not self._terminal, unit="step"
        )
        self._shown = done
        self._clock = perf_counter()
        self._rate = (0.0, 0.0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, metrics: Mapping[str, Any]) -> None:
        """Show a logged line: its `step`, `loss` and `tokens_per_second`."""
        step = metrics["step"]
        parts = [
            f"loss {metrics['loss']:.4f}{self._remark}",
            f"{metrics['tokens_per_second']:,.0f} tokens/s",
        ]
        left = self._seconds_left(step)
        if left > 0:
            parts.append(f"about {in_words(left)} left")
        text = ", ".join(parts)
        if self._terminal:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {step}/{self._steps}: {text}")

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._enabled:
            with tqdm.external_write_mode():
                print(line, flush=True)

    def _seconds_left(self, step: int) -> float:
        now = perf_counter()
        seconds = self._rate[0] * REMEMBERED + now - self._clock
        steps = self._rate[1] * REMEMBERED + step - self._shown
        self._rate, self._clock, self._shown = (seconds, steps), now, step
        return (self._steps - step) * seconds / steps if steps else 0.0


def in_words(seconds: float) -> str:
    """A duration to the precision one plans by: 40 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
