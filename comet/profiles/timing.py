"""How long models take: in turns within one run, so that what slows the machine for a while slows all of them.

A turn is a pause, in which threads of the other model's library stop waiting for more, a pass that is not counted,
which brings the weights back into the processor's caches, and a few that are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_WARM_UP = 3  # passes of each model at each shape before anything counts
_PER_TURN = 5
_PAUSE = 0.03  # seconds; OpenMP's threads spin for about 15 ms
FEWEST = 3  # passes of each that are counted, whatever they take


@dataclass(frozen=True)
class Times:
    """Of one model at one shape.

    Attributes:
        p50: median, in seconds.
        p95: 95th percentile, in seconds.
        passes: how many were counted.
    """

    p50: float
    p95: float
    passes: int


@dataclass(frozen=True)
class Patience:
    """How much is measured.

    Attributes:
        passes: of each model at each shape.
        seconds: after which no further turn begins, for all models at one shape together.
    """

    passes: int
    seconds: float


def times_of(
    calls: Sequence[Callable[[], object]],
    patience: Patience,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Times]:
    """Time calls in turns.

    Args:
        calls: one for each model; the work is done when it returns.
        patience: how often, and how long at most.
        clock: seconds.
        sleep: takes seconds.
    """
    started = clock()
    last = []
    for call in calls:
        for _ in range(_WARM_UP):
            last.append(_seconds(call, clock))
            if clock() - started > patience.seconds / 2:
                break
    slowest = len(calls) * max(last)
    most = max(1, min(_PER_TURN, int(patience.seconds / 4 / max(slowest, 1e-9))))
    seconds: list[list[float]] = [[] for _ in calls]
    started = clock()
    while len(seconds[0]) < patience.passes:
        if clock() - started > patience.seconds and len(seconds[0]) >= FEWEST:
            break
        counted = min(most, patience.passes - len(seconds[0]))
        for call, found in zip(calls, seconds, strict=True):
            if len(calls) > 1:
                sleep(_PAUSE)
                call()
            found += [_seconds(call, clock) for _ in range(counted)]
    return [_summary(found) for found in seconds]


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _summary(seconds: Sequence[float]) -> Times:
    p50, p95 = np.percentile(seconds, [50, 95])
    return Times(float(p50), float(p95), len(seconds))
