"""A grid as its author wrote it, checked: what is shared, and cells that say what sets them apart.

The format is explained in `comet.experiment`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from comet.configuration import checked_fields, fit, read_recipe, refuse_unknown
from comet.experiments.written import (
    RECIPES,
    Content,
    Settings,
    flat,
    nested,
    path_of,
    put,
    slug,
    written_grid,
)
from comet.names import path_component
from comet.spellings import suggestion

PUBLISHED = Path(__file__).parent.parent / "report" / "published.yaml"
MODELS = ("distilled", "mlm", "random", "teacher", "tfidf")


@dataclass(frozen=True)
class CacheSettings:
    """How the teacher's outputs are kept for the cells that share them."""

    use: bool = True
    keep: Literal["hidden", "logits"] = "hidden"
    top_k: int = 64
    batches: int | None = None


@dataclass(frozen=True)
class EvaluateSettings:
    """What the fine-tuned models are measured on."""

    split: str = "dev"
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: as written.
        model: what is fine-tuned: one of `MODELS`, or a folder or hub id.
        like: the distilled cell whose shape, and for `mlm` whose budget, a twin has.
        budget: what an `mlm` twin has the same of.
        task_teacher: the cell whose fine-tuned model teaches while this one is fine-tuned.
        settings: stage → `part.field` → value, the shared ones and the cell's.
        own: what sets it apart, as `stage.part.field` → value.
    """

    name: str
    model: str
    like: str | None
    budget: Literal["time", "steps"]
    task_teacher: str | None
    settings: Mapping[str, Settings]
    own: Settings

    @property
    def folder(self) -> str:
        """The name, as a folder is called."""
        return slug(self.name)

    def content(self, stage: str) -> Content:
        """Part → field → value of a stage."""
        return nested(self.settings[stage])


@dataclass(frozen=True)
class Grid:
    """A whole experiment.

    Attributes:
        name: that of its file.
        title: a sentence for the table.
        teacher: hub id or folder, or None where `adapt` makes one or no cell needs one.
        adapt: the recipe the teacher is made by, or None.
        seeds: of fine-tuning.
        cells: the first is what the others are compared with.
        published: a task whose published figures are shown, or None.
        written: the grid after `extends` and the command line, to be kept beside the results.
    """

    name: str
    title: str
    teacher: str | None
    adapt: Settings | None
    seeds: tuple[int, ...]
    cache: CacheSettings
    evaluate: EvaluateSettings
    cells: tuple[Cell, ...]
    published: str | None
    written: Mapping[str, Any]

    def cell(self, name: str) -> Cell:
        """The cell of this name."""
        return next(cell for cell in self.cells if cell.name == name)

    def only(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of the cells that are asked for, by their names or their folders'.

        Raises:
            ValueError: there is none of such a name.
        """
        known = {
            spelling: cell.name for cell in self.cells for spelling in (cell.name, cell.folder)
        }
        for name in names:
            if name not in known:
                raise ValueError(
                    f"--cells: no cell is called {name!r}{suggestion(name, list(known))}; "
                    f"there are {', '.join(cell.folder for cell in self.cells)}"
                )
        return tuple(known[name] for name in names)


_FITTED = ("adapt", "distill")
_CELL_KEYS = ("model", "like", "budget", "task_teacher", "distill", "mlm", "finetune")


def read_grid(name_or_file: str, given: Mapping[str, Any]) -> Grid:
    """Read a shipped grid or a YAML file.

    Args:
        name_or_file: one of the shipped grids' names, or a `.yaml` file.
        given: dotted key → value from the command line, which the file's own cells still override.

    Raises:
        ValueError: no such grid, an unknown key, a value of the wrong type, cells that contradict themselves.
    """
    written = written_grid(name_or_file)
    path = path_of(name_or_file)
    comets = written_grid(name_or_file, shipped=True)
    if "teacher" in given:
        written.pop("adapt", None)
    for key, value in given.items():
        if not (key.startswith("adapt.") and "adapt" not in written):
            put(written, key, value)
    return _grid(written, path, comets)


def _grid(written: Mapping[str, Any], path: Path, comets: Mapping[str, Any]) -> Grid:
    source = str(path)
    if written.get("teacher") is not None and written.get("adapt") is not None:
        raise ValueError(
            f"{source}: teacher and adapt: give a teacher, or how one is made, not both"
        )
    shared = {stage: _settings(stage, written.get(stage), source) for stage in RECIPES}
    for stage in _FITTED:
        if written.get(stage) is None:
            continue
        base = _settings(stage, comets.get(stage), source)
        own = {key for key, value in shared[stage].items() if key not in base or base[key] != value}
        shared[stage].update(fit(RECIPES[stage], shared[stage], base, own))
    cells = [
        _cell(name, content, shared, source) for name, content in _rows(written, source).items()
    ]
    _require_known(written, source)
    seeds = written.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise ValueError(f"{source}: seeds: got {seeds!r}, expected a list of whole numbers")
    cache = written.get("cache", True)
    grid = Grid(
        name=path.stem,
        title=str(written.get("title", path.stem)),
        teacher=written.get("teacher"),
        adapt=shared["adapt"] if written.get("adapt") is not None else None,
        seeds=tuple(seeds),
        cache=CacheSettings(use=cache)
        if isinstance(cache, bool)
        else _dataclass(CacheSettings, cache, f"{source}: cache"),
        evaluate=_dataclass(EvaluateSettings, written.get("evaluate"), f"{source}: evaluate"),
        cells=tuple(cells),
        published=written.get("published"),
        written=written,
    )
    _require_sound(grid, source)
    return replace(grid, cells=tuple(_with_like(cell, grid) for cell in cells))


def _settings(stage: str, content: Any, source: str) -> Settings:
    """A stage's settings, over those of the recipe that it names; names and types are checked."""
    where = f"{source}: {stage}"
    given = flat(content, where)
    recipe = given.pop("recipe", None)
    found = flat(read_recipe(RECIPES[stage], str(recipe)), where) if recipe is not None else {}
    found.update(given)
    return _checked(stage, found, source)


def _checked(stage: str, settings: Settings, source: str) -> Settings:
    where = f"{source}: {stage}"
    parts = get_type_hints(RECIPES[stage])
    checked: Settings = {}
    for key, value in settings.items():
        part, _, field = key.partition(".")
        refuse_unknown({part: value}, list(parts), where, "part")
        if not field:
            raise ValueError(f"{where}.{part}: got {value!r}, expected fields, such as {part}.NAME")
        for name, one in checked_fields(parts[part], part, {field: value}, where).items():
            checked[f"{part}.{name}"] = one
    return checked


def _rows(written: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Name → what was written for the cell: the product of the axes, then the cells."""
    rows: dict[str, dict[str, Any]] = {}
    axes = written.get("axes") or {}
    cells = written.get("cells") or {}
    for key, value in (("axes", axes), ("cells", cells)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{source}: {key}: got {value!r}, expected names with their settings")
    levels = [_levels(str(axis), values, source) for axis, values in axes.items()]
    for combination in itertools.product(*levels) if levels else ():
        name = " ".join(label for label, _ in combination)
        rows[name] = {key: value for _, one in combination for key, value in one.items()}
    for name, content in cells.items():
        rows[str(name)] = flat(content, f"{source}: cells.{name}")
    if not rows:
        raise ValueError(f"{source}: got no cells, expected some under cells or axes")
    return rows


def _levels(axis: str, values: Any, source: str) -> list[tuple[str, dict[str, Any]]]:
    where = f"{source}: axes.{axis}"
    if isinstance(values, Mapping):
        return [
            (f"{axis} {label}", flat(content, f"{where}.{label}"))
            for label, content in values.items()
        ]
    if not isinstance(values, list) or not values or "." not in axis:
        raise ValueError(
            f"{where}: got {values!r}, expected a list of values of a key such as "
            "distill.objective.alpha, or names with their settings"
        )
    called = axis.rsplit(".", 1)[1].replace("_", " ")
    return [(f"{called} {value}", {axis: value}) for value in values]


def _cell(
    name: str, content: Mapping[str, Any], shared: Mapping[str, Settings], source: str
) -> Cell:
    where = f"{source}: cells.{name}"
    refuse_unknown({key.partition(".")[0]: None for key in content}, _CELL_KEYS, where, "key")
    if "," in name or not slug(name):
        raise ValueError(f"{where}: a cell's name has letters or digits, and no comma")
    path_component(slug(name), where)
    own = {key: value for key, value in content.items() if "." in key}
    settings = dict(shared)
    for stage in ("distill", "mlm", "finetune"):
        if stage in content:  # a whole stage that was left empty, or is no mapping
            raise ValueError(f"{where}.{stage}: got {content[stage]!r}, expected fields")
        given = {
            key.partition(".")[2]: value
            for key, value in own.items()
            if key.startswith(f"{stage}.")
        }
        settings[stage] = {**shared[stage], **_checked(stage, given, where)}
    model = str(content.get("model", "distilled"))
    cell = Cell(
        name=name,
        model=model,
        like=content.get("like"),
        budget=content.get("budget", "time"),
        task_teacher=content.get("task_teacher"),
        settings=settings,
        own=dict(content),
    )
    _require_used(cell, content, where)
    return cell


def _require_used(cell: Cell, content: Mapping[str, Any], where: str) -> None:
    """Refuse a model that is none, and keys that would do nothing for it."""
    if cell.model not in MODELS and "/" not in cell.model and not Path(cell.model).is_dir():
        raise ValueError(
            f"{where}.model: got {cell.model!r}{suggestion(cell.model, MODELS)}, expected one of "
            f"{', '.join(MODELS)}, a folder or a hub id"
        )
    if cell.budget not in ("time", "steps"):
        raise ValueError(f"{where}.budget: got {cell.budget!r}, expected time or steps")
    users = {
        "distill": ("distilled",),
        "mlm": ("mlm",),
        "like": ("mlm", "random"),
        "budget": ("mlm",),
    }
    for key in content:
        models = users.get(key.partition(".")[0])
        if models is not None and cell.model not in models:
            raise ValueError(
                f"{where}.{key}: does nothing for a cell whose model is {cell.model}, only for "
                f"{' and '.join(models)}"
            )


def _require_known(written: Mapping[str, Any], source: str) -> None:
    """Refuse a word where there are only some."""
    words = {
        "evaluate.split": ("dev", "test"),
        "cache.keep": ("hidden", "logits"),
        "published": tuple(yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))),
    }
    for key, known in words.items():
        first, _, rest = key.partition(".")
        value = written.get(first)
        if rest and isinstance(value, Mapping):
            value = value.get(rest)
        if isinstance(value, str) and value not in known:
            raise ValueError(
                f"{source}: {key}: got {value!r}{suggestion(value, known)}, expected {' or '.join(known)}"
            )


def _require_sound(grid: Grid, source: str) -> None:
    """Cells whose names and references hold."""
    folders: dict[str, str] = {}
    for cell in grid.cells:
        if cell.folder in folders:
            raise ValueError(
                f"{source}: cells {folders[cell.folder]!r} and {cell.name!r} would share the folder {cell.folder}"
            )
        folders[cell.folder] = cell.name
    names = [cell.name for cell in grid.cells]
    for cell in grid.cells:
        for key in ("like", "task_teacher"):
            other = getattr(cell, key)
            if other is not None and other not in names:
                raise ValueError(
                    f"{source}: cells.{cell.name}.{key}: no cell is called {other!r}{suggestion(other, names)}"
                )
        if cell.like is not None and grid.cell(cell.like).model != "distilled":
            raise ValueError(f"{source}: cells.{cell.name}.like: {cell.like!r} is not distilled")
        if cell.task_teacher is not None and grid.cell(cell.task_teacher).model == "tfidf":
            raise ValueError(f"{source}: cells.{cell.name}.task_teacher: tfidf cannot teach")
        _require_no_circle(cell, grid, source)


def _require_no_circle(cell: Cell, grid: Grid, source: str) -> None:
    seen = {cell.name}
    teacher = cell.task_teacher
    while teacher is not None:
        if teacher in seen:
            raise ValueError(f"{source}: cells.{cell.name}.task_teacher: it would teach itself")
        seen.add(teacher)
        teacher = grid.cell(teacher).task_teacher


def _with_like(cell: Cell, grid: Grid) -> Cell:
    """A twin that names no cell is the twin of the first distilled one."""
    if cell.model not in ("mlm", "random") or cell.like is not None:
        return cell
    distilled = [one.name for one in grid.cells if one.model == "distilled"]
    if not distilled:
        raise ValueError(
            f"{grid.name}: cells.{cell.name}: {cell.model} is the twin of a distilled cell, and there is none"
        )
    return replace(cell, like=distilled[0])


def _dataclass(kind: Any, content: Any, where: str) -> Any:
    given = {} if content is None else content
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: got {content!r}, expected keys with values")
    names = [field.name for field in fields(kind) if field.name != "use"]
    refuse_unknown(given, names, where, "key")
    return kind(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    )
