"""The same time: how long a distilled student took, and how many steps of MLM alone take as long.

A run's metrics say it of every logged line: tokens read since the last one over tokens per second. Summed, that is the
time it trained, whoever was killed in between; start, evaluations and checkpoints are left out, on both sides.

    budget  = seconds the student trained + seconds the teacher took to read the batches of the student's steps
    steps   = budget / seconds per step of the twin, measured by a short run of the very recipe (its `probe`)

With a cache that several students share, each pays for the teacher in full, as a single student would: of the seconds
that the cache took, the share of its steps that the student saw. What the twin then took is recorded beside its budget.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comet.recipe import AdaptRecipe

PROBE_STEPS = 30
PROBE_LINES = 5  # steps between its logged lines, the first of which warms up


@dataclass(frozen=True)
class Pace:
    """Seconds per step of a twin: of its warm start's short sequences, and of the others."""

    short: float
    full: float


def training_seconds(metrics: Path) -> float:
    """How long a run has trained, by its metrics."""
    return sum(seconds for _, seconds in _lines(metrics))


def teacher_seconds(index: dict[str, Any], steps: int) -> float:
    """How long the teacher of a cache took to read what a student of so many steps saw.

    Args:
        index: the cache's index.json.
        steps: of the student; past the cache's last one it starts again.
    """
    cached = sum(shard["steps"] for shard in index["shards"])
    return float(index["seconds"]) * min(1.0, steps / cached)


def probe_steps(warm_steps: int) -> tuple[int, int]:
    """Steps of a probe's warm start, and of the probe.

    Args:
        warm_steps: those of the twin's warm start.
    """
    short = PROBE_STEPS if warm_steps else 0
    return short, short + PROBE_STEPS


def pace(metrics: Path, short_steps: int) -> Pace:
    """How fast a probe was, without the first line of each kind of step.

    Args:
        metrics: of the probe.
        short_steps: of its warm start.
    """
    lines = _lines(metrics)
    short = [seconds for step, seconds in lines if PROBE_LINES < step <= short_steps]
    full = [seconds for step, seconds in lines if step > short_steps + PROBE_LINES]
    per_step = sum(full) / len(full) / PROBE_LINES
    return Pace(sum(short) / len(short) / PROBE_LINES if short else per_step, per_step)


def steps_for(seconds: float, pace: Pace, warm_steps: int) -> int:
    """How many steps take so many seconds, the first `warm_steps` at the short pace; one at least."""
    short = min(warm_steps, int(seconds / pace.short))
    if short < warm_steps:
        return max(1, short)
    return max(1, short + int((seconds - short * pace.short) / pace.full))


def fitted(recipe: AdaptRecipe, steps: int) -> dict[str, int]:
    """The fields of `optimisation` of a twin of so many steps: its warm-up is at most half of them."""
    return {"steps": steps, "warmup_steps": min(recipe.optimisation.warmup_steps, steps // 2)}


def _lines(metrics: Path) -> list[tuple[int, float]]:
    """Step and seconds of every logged line that is whole."""
    found = []
    before = 0
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            step, tokens, rate = values["step"], values["tokens"], values["tokens_per_second"]
        except (ValueError, TypeError, KeyError):
            continue
        if rate:
            found.append((int(step), (tokens - before) / rate))
        before = tokens
    return found
