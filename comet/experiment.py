"""`python -m comet.experiment GRID --output DIR`: a table of runs, each distilled, fine-tuned and evaluated.

    python -m comet.experiment ablation --teacher T --corpus TEXT --data AFRISENTI --output runs/ablation
    python -m comet.experiment reproduction-cpu --corpus TEXT --data AFRISENTI --output runs/reproduction

GRID is a shipped grid or a YAML file. Killed at any time, the same command goes on: what is done stays, what is
half done is resumed, what failed is tried again. The same command started several times, also on machines that share
DIR, shares the work. A cell that fails keeps no other from running; the exit code is then 1.

A grid
------
    title: Temperatures                # for the table
    teacher: Davlan/afro-xlmr-large    # hub id or folder; also --teacher
    adapt: {recipe: from-scratch}      # or, instead, how a teacher is made first: a recipe of comet.adapt
    distill:                           # what students share: a recipe of comet.distill
      student: {layers: 6, hidden_size: 256}
      objective.temperature: 2.0       # nested or dotted, as one likes
    finetune:                          # what fine-tuning shares: a recipe of comet.finetune
      task: {task: afrisenti, languages: [hau, yor]}
    mlm: {warm_start.steps: 500}       # what twins trained by MLM alone have otherwise: a recipe of comet.adapt
    seeds: [0, 1, 2]                   # of fine-tuning
    evaluate: {split: dev, unseen: [pcm]}
    cache: true                        # or {keep: logits, top_k: 64, batches: 1000}: see comet.cache_teacher
    published: afrisenti               # figures of others, shown below ours on test
    axes:                              # all combinations; each is a cell
      distill.objective.temperature: [1, 2, 4]
      layer:                           # or levels by name, with the settings of each
        last: {}
        upper: {distill.teacher.attention_layer: upper-middle, distill.student.attention_layer: upper-middle}
    cells:                             # and these; the first of all is what the others are compared with
      long: {distill.optimisation.steps: 20000}
      without a teacher: {model: mlm}

`recipe: NAME` in a stage starts from one of Comet's recipes. `extends: GRID` starts from another grid: stages are
joined field by field, other keys replaced, and a grid with cells or axes of its own has none of the other's. First
comes what a cell says, then the command line (`--set distill.optimisation.steps=100`), the grid, the grid that it
extends, the recipe.

A cell
------
What it says of `distill`, `finetune` and `mlm` goes over what is shared. Beside that

    model         what is fine-tuned: `distilled`, the student of this cell (the default); `mlm`, a twin of a student,
                  from the same initial weights, over the same text, but trained by MLM alone; `random`, a twin from
                  random weights; `teacher`, the teacher itself; `tfidf`; or a folder or hub id
    like          of whom an `mlm` or `random` cell is the twin: a distilled cell, by default the first
    budget        `time` (the default): an `mlm` twin trains as many seconds as that student and its teacher took,
                  which `comet.experiments.budget` explains; or `steps`: as many steps
    task_teacher  a cell whose fine-tuned model teaches this one while it is fine-tuned

Where a grid has a cell of the teacher, others are measured against it, and where it has one of tfidf, above that floor.

What lies in DIR
----------------
`table.md`, `experiment.json`, `grid.yaml` (the grid after `extends` and the command line), and a folder per stage, with
its recipe, log and record beside it: `comet.experiments.plan` and `.stage` say where. experiment.json has

    schema, name, title, split, seeds, measure, compared_with, remarks
    teacher      {model, held_out}: the teacher, and its held-out masked loss and entropies if the grid made it
    shared       stage → {state, seconds, attempts, start, end, host, why, folder, log}
    cells        of each: name, folder, model, like, settings (what sets it apart), state (open | running | done |
                 failed | stopped), why (it failed), stages (as in shared), budget (of a twin: seconds to take and
                 taken, and whence), scores_file, scores (its scores-SPLIT.json), difference (of the mean to the first
                 cell's: mean, low, high, languages)
    published    the figures of others, where test is measured
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from comet.configuration import CommandParser, run_command
from comet.durable import write_text
from comet.experiments.checks import problems
from comet.experiments.grid import Grid, read_grid
from comet.experiments.plan import make_plan
from comet.experiments.results import TABLE, Results
from comet.experiments.schedule import Schedule
from comet.experiments.stage import Stage
from comet.experiments.written import GRIDS
from comet.holdings import instead, kind_of
from comet.processes import say

PROGRAM = "comet.experiment"
WRITTEN = "grid.yaml"


@dataclass(frozen=True)
class Order:
    """What is to be done with a grid.

    Attributes:
        grid: read.
        folder: where it goes.
        cells: only these, and what they need.
        jobs: how many stages run at once.
        python: what starts a module; a test's stand-in.
    """

    grid: Grid
    folder: Path
    cells: tuple[str, ...]
    jobs: int = 1
    python: Sequence[str] | None = None


def main(argv: Sequence[str], python: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 1 where a cell failed.

    Args:
        argv: without the program's name.
        python: what starts a module; a test's stand-in.
    """
    given = _parser().parse_args(list(argv))
    grid = read_grid(given.grid, _given(given))
    names = [cell.name for cell in grid.cells]
    cells = grid.only([one.strip() for one in given.cells.split(",")] if given.cells else names)
    if given.jobs < 1:
        raise ValueError(f"--jobs: got {given.jobs}, expected 1 or more")
    order = Order(grid, Path(given.output), cells, given.jobs, python)
    if given.dry_run:
        say(description(order))
        found = dry_run_problems(order)
        for title, problem in found.items():
            say(f"# would fail: {title}: {problem}")
        if found:
            title, problem = next(iter(found.items()))
            raise ValueError(f"{len(found)} stages would fail, such as {title}: {problem}")
    elif not experiment(order):
        raise SystemExit(1)


def experiment(order: Order) -> bool:
    """Run the stages of a grid that are not done, and write what they found.

    Returns:
        Whether all of them are done now.

    Raises:
        ValueError: a recipe that cannot be, or another than a stage was begun with.
        Interrupted: asked to stop; what ran has saved.
    """
    if kind_of(order.folder) not in (None, "experiment", "text", "labelled data"):
        raise ValueError(
            f"--output: {order.folder} holds no experiment{instead(order.folder, 'experiment')}; give another --output"
        )
    plan = make_plan(order.grid, order.folder)
    stages = plan.needed_by(order.cells)
    for stage in stages:
        if stage.content is not None and not stage.remark:  # else it is known later only
            stage.require_same(stage.content())
    order.folder.mkdir(parents=True, exist_ok=True)
    write_text(order.folder / WRITTEN, _as_yaml(order.grid.written))
    results = Results(order.grid, plan, order.folder)
    for remark in plan.remarks:
        say(remark)
    schedule = Schedule(stages, order.jobs, say, order.python, changed=results.write)
    try:
        states = schedule.run()
    finally:
        _, text = results.write()
    say(f"\n{text}\ntable  {order.folder / TABLE}")
    return all(state == "done" for state in states.values())


def description(order: Order) -> str:
    """Every command of every cell, with its recipe, and what is done of it."""
    plan = make_plan(order.grid, order.folder)
    blocks = [_described(stage) for stage in plan.needed_by(order.cells)]
    return "\n".join([*(f"# {remark}" for remark in plan.remarks), "", *blocks])


def dry_run_problems(order: Order) -> dict[str, str]:
    """Why stages that are to run would fail, as far as text, data and configurations of models tell, by title."""
    stages = make_plan(order.grid, order.folder).needed_by(order.cells)
    return problems(stages, order.grid, order.folder)


def _described(stage: Stage) -> str:
    done = " (done)" if stage.is_done else ""
    lines = [f"# {stage.title}{done}"]
    if stage.remark:
        lines.append(f"#   {stage.remark}")
    besides = [
        word
        for flag, folder, one in stage.beside_runs
        if not one.is_done
        for word in (flag, folder)
    ]
    lines.append(f"python -m {shlex.join([*stage.command(), *besides])}")
    if stage.prepare is not None:
        lines.insert(
            1,
            "#   before it the untrained weights are written, those that the student started from",
        )
    if stage.content is not None and not stage.remark:
        lines += [f"#   {line}" for line in _as_yaml(stage.content()).splitlines()]
    return "\n".join([*lines, ""])


def _as_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _given(given: argparse.Namespace) -> dict[str, Any]:
    """Dotted key → value of the command line."""
    found: dict[str, Any] = {}
    for setting in given.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: got {setting!r}, expected KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key}: {value!r} is not YAML") from error
    if given.teacher is not None:
        found["teacher"] = given.teacher
    if given.corpus is not None:
        found["distill.corpus.paths"] = found["adapt.corpus.paths"] = given.corpus
    if given.data is not None:
        found["finetune.task.data"] = given.data
    return found


def _parser() -> argparse.ArgumentParser:
    shipped = ", ".join(sorted(file.stem for file in GRIDS.glob("*.yaml")))
    parser = CommandParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", help=f"a .yaml file, or one of {shipped}")
    parser.add_argument("--output", required=True, metavar="DIR", help="the experiment's folder")
    parser.add_argument("--teacher", metavar="MODEL", help="folder or hub id; the grid makes none")
    parser.add_argument("--corpus", nargs="+", metavar="TEXT", help="text of teacher and students")
    parser.add_argument("--data", help="labelled data of the task")
    parser.add_argument("--cells", metavar="A,B", help="only these cells, and what they need")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="stages at once")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="seeds=[0], distill.PART.KEY=2",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print every command with its recipe, open what they read, and run none",
    )
    return parser


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
