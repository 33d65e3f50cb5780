"""What a report is made of: runs, scores and experiments as they lie in their folders.

Nothing is invented: a file that is absent is a note on the page, a file that is there but broken ends the report.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from comet.holdings import instead
from comet.names import path_inside
from comet.runs import EVALUATION, METRICS, RECIPE, RECORD

EXPERIMENT = "experiment.json"
Kind = Literal["distillation", "adaptation", "fine-tuning"]
_STAGES = (
    "adapt",
    "distill",
    "finetune",
    "mlm",
    "probe",
)  # folders of experiments, called alike in every cell
_OUTCOMES = {"distillation": "agreement.json", "adaptation": "held_out.json"}


@dataclass(frozen=True)
class Curves:
    """Logged lines and evaluations of one training.

    Attributes:
        name: what was trained, within its run; empty where the run trains one model.
        metrics: lines of metrics.jsonl.
        evaluations: lines of evaluation.jsonl.
    """

    name: str
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: distinct in the report.
        folder: where it lies.
        kind: what it did.
        recipe: its recipe.
        record: its run.json; empty where there is none.
        curves: of each model it trained.
        outcome: what it wrote at its end, if it came there.
    """

    name: str
    folder: Path
    kind: Kind
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    curves: Sequence[Curves]
    outcome: Mapping[str, Any] | None


@dataclass(frozen=True)
class Scores:
    """A scores-SPLIT.json.

    Attributes:
        name: of the system, distinct in the report.
        folder: where it lies.
        content: the file.
        model: what an experiment's cell fine-tuned: distilled, mlm, random, teacher, tfidf or a name; else None.
    """

    name: str
    folder: Path
    content: Mapping[str, Any]
    model: str | None = None

    @property
    def measure(self) -> str:
        """The main measure."""
        return str(self.content["measure"])

    @property
    def group(self) -> tuple[str, str, str]:
        """Scores of the same task, split and measure stand beside each other."""
        return (str(self.content["task"]["name"]), str(self.content["split"]), self.measure)


@dataclass(frozen=True)
class Experiment:
    """An experiment.json.

    Attributes:
        name: of the experiment, distinct in the report.
        folder: where it lies.
        content: the file.
    """

    name: str
    folder: Path
    content: Mapping[str, Any]


@dataclass
class Material:
    """All that a report shows.

    Attributes:
        runs: in the order given.
        scores: likewise; the test split where there is one.
        experiments: likewise.
        notes: what is missing or was left out, each a sentence.
        files: name to content of the JSON that was read, for who wants the raw numbers.
    """

    runs: list[Run] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)


def read(folders: Sequence[Path]) -> Material:
    """Read runs, scores and experiments.

    Raises:
        ValueError: a folder is not there or holds no run, a file is broken, or there is nothing to show.
    """
    material = Material()
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            what = "is a file; give its folder" if folder.exists() else "does not exist"
            raise ValueError(f"RUN: {folder} {what}")
        if not _take(folder, material, seen):
            raise ValueError(f"RUN: {folder} holds no run{_hint(folder)}")
    shown = [
        run for run in material.runs if any(one.metrics or one.evaluations for one in run.curves)
    ]
    if not (shown or material.scores or material.experiments):
        raise ValueError(
            f"RUN: nothing to report yet in {', '.join(map(str, folders))}: no logged step, no scores"
        )
    _note_absent(material)
    return material


def _take(folder: Path, material: Material, seen: set[Path]) -> bool:
    """Take in what lies in a folder; false where that is nothing."""
    if folder.resolve() in seen:
        return True
    seen.add(folder.resolve())
    found = False
    if (folder / EXPERIMENT).is_file():
        _take_experiment(folder, material, seen)
        found = True
    scored = sorted(folder.glob("scores-*.json"))
    if scored and folder.resolve() / "scores" not in seen:
        _take_scores(folder, scored, material)
    found = found or bool(scored)
    if (folder / RECIPE).is_file():
        found = _take_run(folder, material) or found
    return found


def _take_experiment(folder: Path, material: Material, seen: set[Path]) -> None:
    """Its cells' scores under the cells' names, and the runs that lie below it."""
    file = folder / EXPERIMENT
    content = read_json(file)
    cells = content.get("cells")
    if content.get("schema") != 1 or not isinstance(cells, list):
        raise ValueError(f"RUN: {file} is no experiment of schema 1")
    name = _free(folder.resolve().name, [one.name for one in material.experiments])
    material.experiments.append(Experiment(name, folder, content))
    material.files[f"{name}/{EXPERIMENT}"] = content
    for cell in cells:
        label = _free(str(cell["name"]), [one.name for one in material.scores], name)
        if cell["state"] != "done":
            why = f": {cell['why']}" if cell.get("why") else ""
            material.notes.append(f"Cell {label} is not done but {cell['state']}{why}.")
        if cell.get("scores") is None:
            continue
        _check_scores(cell["scores"], f"cell {label} of {file}")
        place = path_inside(folder, cell["scores_file"], f"RUN: cell {label} of {file}").parent
        material.scores.append(Scores(label, place, cell["scores"], cell["model"]))
        seen.add(place.resolve() / "scores")
    for inner in _run_folders(folder):
        _take(inner, material, seen)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders below that hold a run or scores, outermost first; those of checkpoints and seeds are a run's own."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name in ("checkpoints", "predictions", "model", "student") or inner.name[0] == ".":
            continue
        if (inner / RECIPE).is_file() or any(inner.glob("scores-*.json")):
            yield inner
        else:
            yield from _run_folders(inner)


def _take_scores(folder: Path, files: Sequence[Path], material: Material) -> None:
    by_split = {file.stem.removeprefix("scores-"): read_json(file) for file in files}
    split = "test" if "test" in by_split else next(iter(by_split))
    for one, content in by_split.items():
        _check_scores(content, folder / f"scores-{one}.json")
    content = by_split[split]
    name = _system_name(content, folder, [one.name for one in material.scores])
    recipe = _read_yaml(folder / RECIPE) if (folder / RECIPE).is_file() else {}
    model = recipe.get("model")
    is_floor = isinstance(model, Mapping) and model.get("model") == "tfidf"
    material.scores.append(Scores(name, folder, content, "tfidf" if is_floor else None))
    for one, content in by_split.items():
        material.files[f"{name}/scores-{one}.json"] = content
    if split != "test":
        material.notes.append(
            f"{name} has no scores on the test split yet: those on {split} are shown."
        )


def _system_name(content: Mapping[str, Any], folder: Path, taken: Sequence[str]) -> str:
    """The name in the file; folders further up are named too where that is taken already."""
    name = str(content.get("system") or folder.resolve().name)
    for part in [folder.resolve().name, *(path.name for path in folder.resolve().parents)]:
        if name not in taken:
            return name
        if part:
            name = f"{part}/{name}"
    return _free(name, taken)


def _check_scores(content: Mapping[str, Any], file: Path | str) -> None:
    """Refuse a file without the parts a report needs, by name."""
    if content.get("schema") != 1:
        raise ValueError(f"RUN: {file} has schema {content.get('schema')!r}, expected 1")
    for key, kind in {
        "task": Mapping,
        "split": str,
        "measure": str,
        "languages": Mapping,
        "seeds": list,
    }.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"RUN: {file} has no {key}")
    measure = content["measure"]
    for language, found in content["languages"].items():
        if not isinstance(found, Mapping) or not isinstance(found.get(measure), Mapping):
            raise ValueError(f"RUN: {file} has no {measure} of {language}")


def _take_run(folder: Path, material: Material) -> bool:
    recipe = _read_yaml(folder / RECIPE)
    kind = _kind(recipe)
    if kind is None:
        return False
    path = folder.resolve()
    taken = [run.name for run in material.runs]
    name = f"{path.parent.name}/{path.name}" if path.name in _STAGES else path.name
    name = _free(name, taken, path.parent.name)
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    outcome = None
    wanted = _OUTCOMES.get(kind)
    if wanted is not None and (folder / wanted).is_file():
        outcome = read_json(folder / wanted)
        material.files[f"{name}/{wanted}"] = outcome
    curves = list(_curves(folder, name, material.notes))
    material.runs.append(Run(name, folder, kind, recipe, record, curves, outcome))
    material.files[f"{name}/{RECORD}"] = record
    material.files[f"{name}/recipe"] = recipe
    for one in curves:
        place = f"{name}/{one.name}" if one.name else name
        material.files[f"{place}/{METRICS}"] = one.metrics
        material.files[f"{place}/{EVALUATION}"] = one.evaluations
    return True


def _kind(recipe: Mapping[str, Any]) -> Kind | None:
    if "task" in recipe:
        return "fine-tuning"
    if {"teacher", "student"} <= recipe.keys():
        return "distillation"
    return "adaptation" if {"model", "corpus"} <= recipe.keys() else None


def _curves(folder: Path, run: str, notes: list[str]) -> Iterator[Curves]:
    """Of the run itself, or of each model in its seed folders."""
    inner = [folder] if (folder / METRICS).is_file() else []
    inner += sorted(file.parent for file in folder.glob(f"seed-*/{METRICS}"))
    inner += sorted(file.parent for file in folder.glob(f"seed-*/*/{METRICS}"))
    for place in inner:
        name = "" if place == folder else place.relative_to(folder).as_posix()
        lines = [_lines(place / file, run, notes) for file in (METRICS, EVALUATION)]
        yield Curves(name, *lines)


def _lines(file: Path, run: str, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of a JSONL file; a last one that is not yet whole is left out, and that is said."""
    if not file.is_file():
        return []
    texts = _text(file).split("\n")
    if texts and texts[-1]:
        notes.append(f"{run}: the last line of {file.name} is not whole yet and is left out.")
    found = []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"RUN: {file} line {number} is not JSON: {error.msg}") from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"RUN: {file} line {number} names no step")
        found.append(line)
    return found


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it cannot be read, is half written, or holds something else.
    """
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"RUN: {file} is not whole JSON (line {error.lineno}: {error.msg}); "
            "if it is being written, try again, else make it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"RUN: {file} holds no JSON object")
    return content


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_text(file))
    except yaml.YAMLError as error:
        raise ValueError(f"RUN: {file} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"RUN: cannot read {file}: {error}") from error


def _free(name: str, taken: Sequence[str], parent: str = "") -> str:
    """The name, with its parent's or a number where it is taken."""
    if name in taken and parent:
        name = f"{parent}/{name}"
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _hint(folder: Path) -> str:
    inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path)]
    if inner:
        return f"; did you mean {folder / inner[0]}?"
    return instead(folder, "run") or f" (no {RECIPE}, scores-*.json or {EXPERIMENT})"


def _is_run(folder: Path) -> bool:
    names = (RECIPE, EXPERIMENT)
    return any((folder / name).is_file() for name in names) or any(folder.glob("scores-*.json"))


def _note_absent(material: Material) -> None:
    """Name runs that did not come to their end, and parts that no folder holds."""
    for run in material.runs:
        state = run.record.get("state")
        if state is None:
            material.notes.append(f"{run.name} has no {RECORD}: how it ended is not known.")
        elif state != "done":
            why = f" ({run.record['why']})" if run.record.get("why") else ""
            material.notes.append(
                f"{run.name} is not done but {state}{why}: its figures are of a part."
            )
    if not material.scores:
        material.notes.append(
            "No scores on a task: none of these folders was fine-tuned and evaluated "
            "(python -m comet.finetune, python -m comet.evaluate)."
        )
    if not any(run.kind == "distillation" for run in material.runs):
        material.notes.append("No distillation run is among these folders, so no attention maps.")
