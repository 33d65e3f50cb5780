"""What an experiment found so far: experiment.json, and a table that people read.

Everything is read from the folders of the stages, so that any process, at any time, writes the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from comet.cards.markdown import escaped
from comet.durable import write_json, write_text
from comet.experiments.differences import Differences
from comet.experiments.grid import PUBLISHED, Cell, Grid
from comet.experiments.plan import Plan
from comet.experiments.stage import Stage, read_json
from comet.experiments.twins import budget_of
from comet.progress import in_words

EXPERIMENT, TABLE = "experiment.json", "table.md"
_TOLD = ("seconds", "attempts", "start", "end", "host", "why")


class Results:
    """The results of an experiment.

    Args:
        grid: what was asked for.
        plan: its stages.
        folder: where all of it lies.
    """

    def __init__(self, grid: Grid, plan: Plan, folder: Path) -> None:
        self._grid = grid
        self._plan = plan
        self._folder = folder
        self._differences = Differences(grid.evaluate.split)
        self._undefined: dict[str, str] = {}  # cell → why it has no difference

    def write(self) -> tuple[dict[str, Any], str]:
        """Write experiment.json and table.md; returns what they hold."""
        content = self.content()
        text = f"# {self._grid.title}\n\n{table(content)}\n"
        write_json(self._folder / EXPERIMENT, content)
        write_text(self._folder / TABLE, text)
        return content, text

    def content(self) -> dict[str, Any]:
        """What experiment.json holds; `comet.experiment` explains it."""
        grid, plan = self._grid, self._plan
        cells = [self._cell(cell) for cell in grid.cells]
        measures = [cell["scores"]["measure"] for cell in cells if cell["scores"] is not None]
        return {
            "schema": 1,
            "name": grid.name,
            "title": grid.title,
            "split": grid.evaluate.split,
            "seeds": list(grid.seeds),
            "measure": measures[0] if measures else None,
            "compared_with": grid.cells[0].name,
            "teacher": self._teacher(),
            "remarks": [*plan.remarks, *self._undefined.values()],
            "shared": {stage.name: self._stage(stage) for stage in plan.of(None)},
            "cells": cells,
            # figures of others are of test, and stand beside no score on dev
            "published": published(grid.published) if grid.evaluate.split == "test" else None,
        }

    def _teacher(self) -> dict[str, Any] | None:
        if self._plan.teacher is None:
            return None
        held_out = read_json(Path(self._plan.teacher).parent / "held_out.json")
        model = self._plan.teacher
        if self._grid.adapt is not None:  # it lies in the experiment's folder, which may be moved
            model = self._relative(Path(model))
        return {"model": model, "held_out": held_out or None}

    def _cell(self, cell: Cell) -> dict[str, Any]:
        stages = {stage.name: stage for stage in self._plan.of(cell.name)}
        found = {name: self._stage(stage) for name, stage in stages.items()}
        run = stages["finetune"].path
        scores = self._scores(cell)
        return {
            "name": cell.name,
            "folder": self._relative(run.parent),
            "model": cell.model,
            "like": cell.like,
            "settings": cell.own,
            "state": _state([stage["state"] for stage in found.values()]),
            "why": next((one["why"] for one in found.values() if "why" in one), None),
            "stages": found,
            "budget": budget_of(run.parent),
            "scores_file": self._relative(self._scores_file(cell)) if scores else None,
            "scores": scores or None,
            "difference": self._difference(cell, scores),
        }

    def _difference(self, cell: Cell, scores: Mapping[str, Any]) -> dict[str, Any] | None:
        """The cell's mean less the first cell's, with its interval; None for the first, or where one has none yet."""
        first = self._grid.cells[0]
        firsts = self._scores(first)
        if cell.name == first.name or not scores or not firsts:
            return None
        runs = [self._scores_file(one).parent for one in (cell, first)]
        try:
            return self._differences.between(runs[0], scores, runs[1], firsts)
        except (
            ValueError
        ) as error:  # of other data: the table is to say so, and the others to run on
            self._undefined[cell.name] = f"{cell.name}: no difference to {first.name}: {error}"
            return None

    def _scores(self, cell: Cell) -> dict[str, Any]:
        """Those of a cell that is evaluated; empty for others."""
        (stage,) = (one for one in self._plan.of(cell.name) if one.name == "evaluate")
        return read_json(self._scores_file(cell)) if stage.is_done else {}

    def _scores_file(self, cell: Cell) -> Path:
        (stage,) = (one for one in self._plan.of(cell.name) if one.name == "finetune")
        return stage.path / f"scores-{self._grid.evaluate.split}.json"

    def _stage(self, stage: Stage) -> dict[str, Any]:
        record = stage.record
        state = "done" if stage.is_done else record.get("state", "open")
        told = {key: record[key] for key in _TOLD if key in record}
        if state != "failed":
            told.pop("why", None)
        return {
            "state": state,
            **told,
            "folder": self._relative(stage.path),
            "log": self._relative(stage.beside(".log")),
        }

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def published(name: str | None) -> dict[str, Any] | None:
    """Figures that others published, by the name of their task; fractions of 1."""
    if name is None:
        return None
    figures: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[name]
    return figures


def table(content: Mapping[str, Any]) -> str:
    """The table of an experiment, as Markdown: F1 in percent, intervals of 95 %."""
    measure = content["measure"]
    lines = [f"State: {_states(content['cells'])}.", ""]
    if measure is not None:
        lines += [*_rows(content, measure), ""]
        lines.append(
            f"{measure.replace('_', ' ')} on {content['split']} in percent, mean over the trained languages and "
            f"{len(content['seeds'])} seed{'s' if len(content['seeds']) > 1 else ''}, with the 95 % interval; "
            f"differences are those to {escaped(content['compared_with'])}."
        )
    lines += [f"- {escaped(note)}" for note in notes(content)]
    return "\n".join(lines)


def notes(content: Mapping[str, Any]) -> list[str]:
    """What a reader of the table is to know: failures, the teacher, budgets, sources."""
    found = [f"{cell['name']}: {cell['why']}" for cell in content["cells"] if cell["why"]]
    found += content["remarks"]
    teacher = content["teacher"]
    if teacher is not None and teacher["held_out"] is not None:
        held_out = teacher["held_out"]
        loss, entropy = held_out["loss"]["all"], held_out["entropy_given_language"]
        side = "below" if loss < entropy else "above"
        found.append(
            f"Teacher: held-out masked loss {loss:.2f} nats, {abs(entropy - loss):.2f} {side} the entropy of pieces "
            f"given the language ({entropy:.2f})"
        )
    for cell in content["cells"]:
        budget = cell["budget"]
        if budget is not None and budget["spent_seconds"] is not None:
            taught = budget["teacher_seconds"]
            beside = "" if taught is None else f", {taught:,.1f} of them the teacher's"
            found.append(
                f"{cell['name']}: {budget['steps']:,} steps in {budget['spent_seconds']:,.1f} s, for the "
                f"{budget['seconds']:,.1f} s that {budget['like']} took{beside}"
            )
    figures = content["published"]
    if figures is not None:
        found.append(f"Published, not measured here: {figures['source']}")
    return found


def _rows(content: Mapping[str, Any], measure: str) -> list[str]:
    scored = [cell for cell in content["cells"] if cell["scores"] is not None]
    trained, unseen = _languages(scored)
    languages, others = map(escaped, trained), map(escaped, unseen)
    head = ["", *languages, "mean", *others, "difference", "of the teacher", "parameters", "time"]
    rows = [_row(cell, measure, trained, unseen) for cell in content["cells"]]
    for system in (content["published"] or {}).get("systems", []):
        rows.append(
            [
                f"{system['name']} (published)",
                *(_percent(system["languages"].get(language)) for language in trained),
                _percent(system["mean"]) if set(trained) == set(system["languages"]) else "",
                *("" for _ in unseen),
                *("", "", _millions(system.get("parameters")), ""),
            ]
        )
    rule = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _row(
    cell: Mapping[str, Any], measure: str, trained: Sequence[str], unseen: Sequence[str]
) -> list[str]:
    scores = cell["scores"]
    seconds = sum(stage.get("seconds", 0.0) for stage in cell["stages"].values())
    time = in_words(seconds) if seconds else ""
    if scores is None:
        blank = len(trained) + len(unseen) + 3
        return [f"{escaped(cell['name'])} ({cell['state']})", *("" for _ in range(blank)), "", time]
    retention = scores["retention"]
    kept = None if retention is None else retention["raw"]["mean"]
    return [
        escaped(cell["name"]),
        *(_mean(scores, language, measure) for language in trained),
        _interval(scores["mean"][measure]),
        *(_mean(scores, language, measure) for language in unseen),
        _interval(cell["difference"], sign="+"),
        "" if kept is None else f"{kept:.1%}",
        _millions((scores["size"] or {}).get("parameters")),
        time,
    ]


def _languages(scored: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Of all cells: those trained on, and the others."""
    trained: dict[str, bool] = {}
    for cell in scored:
        for language, found in cell["scores"]["languages"].items():
            trained[language] = trained.get(language, False) or bool(found["trained"])
    return (
        [name for name, is_trained in trained.items() if is_trained],
        [name for name, is_trained in trained.items() if not is_trained],
    )


def _mean(scores: Mapping[str, Any], language: str, measure: str) -> str:
    found = scores["languages"].get(language)
    return "" if found is None else _percent(found[measure]["mean"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _interval(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return ""
    low, high = (f"{100 * found[end]:{sign}.1f}" for end in ("low", "high"))
    return f"{100 * found['mean']:{sign}.2f} [{low}, {high}]"


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:,.1f} M"


def _state(states: Sequence[str]) -> str:
    """Of a cell, from its stages'."""
    for state in ("failed", "running", "stopped"):
        if state in states:
            return state
    if all(state == "done" for state in states):
        return "done"
    return "open"


def _states(cells: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell["state"]] = counts.get(cell["state"], 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())
