"""Which part of a step its time goes to: a clock that knows whose time it is, forward and backward.

Autograd runs backward in the reverse order of forward. The gradient of a part's input arrives when the part's backward
is done, and a hook on that gradient stops its time. The device is waited for at every border, so that a step takes
longer by parts than as a whole.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from torch import Tensor

from bench.cases import synchronize
from comet.batch import Batch, TeacherOutputs
from comet.objective import Distiller
from comet.tap import Tapped
from comet.teachers import Teacher

TEACHER, STUDENT, HEAD = "teacher", "student", "head and KL"
ATTENTION, PROJECTION, OPTIMIZER, OTHER = "attention", "projection", "optimizer", "other"
PARTS = (TEACHER, STUDENT, HEAD, ATTENTION, PROJECTION, OPTIMIZER, OTHER)
PART_OF_OP = {"mean_attention": ATTENTION, "projected_mse": PROJECTION}


class Clock:
    """Seconds of each part of one step, while it runs; a clock that does not run costs nothing.

    Args:
        device: waited for at every border.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._owners: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def running(self) -> Iterator[dict[str, float]]:
        """Count from nothing; what no part claims is `OTHER`."""
        self.seconds = defaultdict(float)
        synchronize(self._device)
        self._owners, self._since = [OTHER], time.perf_counter()
        yield self.seconds
        self.stop(OTHER)
        self._owners = []

    def stop(self, part: str) -> None:
        """Give the time since the last border to a part."""
        if not self._owners:
            return
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is this part's, but for parts within."""
        if not self._owners:
            yield
            return
        self.stop(self._owners[-1])
        self._owners.append(name)
        yield
        self.stop(self._owners.pop())

    def after_backward_of(self, part: str, value: Any) -> Any:
        """The same tensor, whose gradient's arrival ends the part's backward; anything else as it is."""
        if not self._owners or not isinstance(value, Tensor) or not value.requires_grad:
            return value
        alias = value.view_as(value)  # its gradient is that of this use alone
        alias.register_hook(lambda gradient: self.stop(part))
        return alias


def timed(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose forward and backward are a part."""

    def call(*arguments: Any, **named: Any) -> Any:
        with clock.part(part):
            return function(
                *(clock.after_backward_of(part, value) for value in arguments),
                **{name: clock.after_backward_of(part, value) for name, value in named.items()},
            )

    return call


def timed_ops(clock: Clock, ops: ModuleType) -> ModuleType:
    """`comet_kernels` or its reference with a clock in the ops of the attention term."""
    found = {name: timed(clock, part, getattr(ops, name)) for name, part in PART_OF_OP.items()}
    return cast(ModuleType, SimpleNamespace(**{**vars(ops), **found}))


class TimedTeacher:
    """A teacher whose reading is a part.

    Args:
        teacher: that reads.
        clock: of the step.
    """

    def __init__(self, teacher: Teacher, clock: Clock) -> None:
        self._teacher = teacher
        self._clock = clock

    @property
    def output_weight(self) -> Tensor:
        """`[V, E]`."""
        return self._teacher.output_weight

    @property
    def output_bias(self) -> Tensor | None:
        """`[V]`, or None."""
        return self._teacher.output_bias

    def read(self, batch: Batch) -> TeacherOutputs:
        """As the teacher reads."""
        with self._clock.part(TEACHER):
            return self._teacher.read(batch)

    def to(self, device: Any) -> object:
        """Move the teacher."""
        return self._teacher.to(device)


def watch(distiller: Distiller, clock: Clock) -> None:
    """Let the clock see the student's passes, and the head and KL between them."""
    forward = distiller.student.forward

    def student(*arguments: Any) -> Tapped:
        with clock.part(STUDENT):
            tapped = forward(*arguments)
        return replace(tapped, hidden=clock.after_backward_of(HEAD, tapped.hidden))

    vars(distiller.student)["forward"] = student
    vars(distiller)["_match_logits"] = timed(clock, HEAD, distiller._match_logits)


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each part over some steps."""
    return {part: statistics.median(step[part] for step in steps) for part in steps[0]}
