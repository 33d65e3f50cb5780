"""The page: what its template is given, and how it is written."""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import comet
from comet.report import headlines, sections, words
from comet.report.figures import MEASURES, Group, figure, groups_of
from comet.report.maps import Maps, attention_maps, languages_of
from comet.report.measuring import Cost, cost_of, shape_of
from comet.report.reading import Material, Run, Scores

_HERE = Path(__file__).parent
_SHORT = 12  # characters of a fingerprint


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        title: of the page; None: made from what it shows.
        published: see `groups_of`.
        maps: of how many distillations attention maps are drawn.
        sentences: for those, by language; others are from the toy corpus.
        measure: run each kind of model to find its latency and memory.
    """

    title: str | None = None
    published: str | None = None
    maps: int = 2
    sentences: Mapping[str, str] = field(default_factory=dict)
    measure: bool = True


def page(material: Material, options: Options, say: Callable[[str], None]) -> str:
    """The page as text.

    Args:
        material: what was read; gains notes on what could not be shown.
        options: the user's.
        say: is told what takes time.

    Raises:
        ValueError: an option that does not fit.
    """
    groups = groups_of(material, options.published)
    names, colours = sections.Names(), sections.Colours()
    for group in groups:
        for language in (*group.trained, *group.unseen):
            colours.of(language)
    costs = _costs(groups, material, say) if options.measure else {}
    maps = _all_maps(material, options, say)
    runs = [_run_facts(run) for run in material.runs]
    content = {
        "title": options.title or _title(groups, material),
        "headline": headlines.headline(groups, material),
        "tiles": headlines.tiles(groups, material, costs),
        "groups": [_group_content(group, costs, names) for group in groups],
        "experiments": [
            {"experiment": one, "panels": sections.comparison_panels(one, names)}
            for one in material.experiments
        ],
        "costs": costs,
        "measured": options.measure,
        "trainings": sections.trainings(material, names, colours),
        "distilled": _ended(material, "distillation"),
        "adapted": _ended(material, "adaptation"),
        "maps": [(name, one, sections.map_pairs(one, names)) for name, one in maps],
        "runs": runs,
        "facts": {one["run"].name: one for one in runs},
        "notes": list(dict.fromkeys(material.notes)),
        "downloads": _downloads(material, costs),
        "written": datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        "version": comet.__version__,
        "measures": MEASURES,
        "tasks": headlines.TASKS,
        "words": words,
        "figure": figure,
        "settings": _settings,
        "seconds": _seconds,
        "style": (_HERE / "style.css").read_text(encoding="utf-8"),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return words.drawable(environment.get_template("page.html.jinja").render(content))


def _ended(material: Material, kind: str) -> list[Run]:
    """Runs of this kind that wrote what came of them."""
    return [run for run in material.runs if run.kind == kind and run.outcome is not None]


def _title(groups: Sequence[Group], material: Material) -> str:
    if len(material.experiments) == 1:
        return str(material.experiments[0].content.get("title") or material.experiments[0].name)
    lead = headlines.leading(groups)
    if lead is not None:
        others = len(lead[0].own) - 1
        beside = f" and {others} other{'s' * (others > 1)}" if others > 0 else ""
        return f"{lead[1].name}{beside} on {headlines.task_name(lead[0])}"
    names = [run.name for run in material.runs]
    return words.listed(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} other runs"


def _group_content(
    group: Group, costs: Mapping[str, Cost], names: sections.Names
) -> dict[str, Any]:
    return {
        "group": group,
        "roles": sections.roles_in([group]),
        "panels": sections.score_panels(group, names),
        "many": len(group.systems) > sections.MANY,
        "extra": list(dict.fromkeys(key for one in group.systems for key in one.others)),
        "cost_panels": sections.cost_panels(group, costs, names),
        "confusion": sections.confusions(group),
        "problems": _problems(group),
        "seeds": sorted(
            {seed for one in group.systems if one.scores for seed in _seeds(one.scores)}
        ),
    }


def _seeds(scores: Scores) -> list[Any]:
    return list(scores.content["seeds"])


def _settings(cell: Mapping[str, Any]) -> str:
    """What sets a cell apart, in words."""
    parts = [] if cell["model"] == "distilled" else [f"model {cell['model']}"]
    if cell.get("like"):
        parts.append(f"like {cell['like']}")
    parts += _flat(cell.get("settings") or {})
    return ", ".join(parts) or "as shared"


def _flat(content: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found += _flat(value)
        else:
            found.append(f"{key.split('.')[-1]} {value}")
    return found


def _seconds(cell: Mapping[str, Any]) -> float | None:
    """Of all its stages."""
    found = [stage["seconds"] for stage in cell["stages"].values() if "seconds" in stage]
    return sum(found) if found else None


def _problems(group: Group) -> list[str]:
    """Rows of the data that were left out, each said once."""
    found: dict[str, None] = {}
    for system in group.systems:
        for problem in (system.scores.content.get("problems") or []) if system.scores else []:
            if isinstance(problem, Mapping):
                problem = f"{problem.get('file')}:{problem.get('line')}: {problem.get('reason')}"
            found[str(problem)] = None
    return list(found)


def _costs(
    groups: Sequence[Group], material: Material, say: Callable[[str], None]
) -> dict[str, Cost]:
    """Latency and memory of each system that lies here; models of one shape are measured once."""
    known: dict[str, Cost | str] = {}
    found: dict[str, Cost] = {}
    for system in (system for group in groups for system in group.systems):
        if system.scores is None or system.name in found:
            continue
        folder = _model_of(system.scores.folder)
        if folder is None:
            material.notes.append(
                f"{system.name}: no model lies beside its scores, so its latency and memory are not measured."
            )
            continue
        shape = shape_of(folder)
        if shape not in known:
            say(f"measuring latency and memory of {system.name}")
            try:
                known[shape] = cost_of(folder)
            except ValueError as error:
                known[shape] = str(error)
        cost = known[shape]
        if isinstance(cost, Cost):
            found[system.name] = cost
        else:
            material.notes.append(f"{system.name}: its latency could not be measured: {cost}.")
    return found


def _model_of(folder: Path) -> Path | None:
    """The first model of a fine-tuned run."""
    for pattern in ("model", "seed-*/model", "seed-*/*/model"):
        for inner in sorted(folder.glob(pattern)):
            return inner
    return None


def _all_maps(
    material: Material, options: Options, say: Callable[[str], None]
) -> list[tuple[str, Maps]]:
    found: list[tuple[str, Maps]] = []
    left: list[str] = []
    for run in material.runs:
        if run.kind != "distillation":
            continue
        if len(found) >= options.maps:
            left.append(run.name)
            continue
        say(f"attention maps of {run.name}")
        languages = languages_of(run) or sorted(options.sentences)
        try:
            maps = attention_maps(run, languages, options.sentences)
        except (ValueError, OSError) as error:
            material.notes.append(f"{run.name}: no attention maps, as {error}.")
            continue
        if maps.missing:
            material.notes.append(
                f"{run.name}: no attention map of {words.listed(maps.missing)}, as there is no sentence for it; "
                "--sentences gives one."
            )
        if maps.pairs:
            found.append((run.name, maps))
    if left:
        material.notes.append(
            f"Attention maps are of {options.maps} distillation{'s' * (options.maps != 1)} (--maps), not of "
            f"{words.listed(left)}."
        )
    return found


def _run_facts(run: Run) -> dict[str, Any]:
    """A row of the table of what was run."""
    record, recipe = run.record, run.recipe
    corpus, task = recipe.get("corpus") or {}, recipe.get("task") or {}
    hardware = record.get("hardware") or {}
    machine = (
        hardware.get("gpu")
        or f"{hardware.get('processors', '?')} × {hardware.get('machine', 'CPU')}"
    )
    versions = record.get("versions") or {}
    fingerprint = record.get("corpus")
    data = corpus.get("paths") or [task.get("data") or task.get("task")]
    return {
        "run": run,
        "state": record.get("state", "not known"),
        "start": str(record.get("start", "–"))[:16].replace("T", " "),
        "took": words.duration(words.taken(record)),
        "model": _model_in_words(run),
        "data": ", ".join(str(one) for one in data if one),
        "fingerprint": fingerprint[:_SHORT] if isinstance(fingerprint, str) else "",
        "training": _training_in_words(recipe),
        "machine": machine if hardware else "–",
        "commit": record.get("commit") or "–",
        "versions": ", ".join(
            f"{key} {versions[key]}" for key in ("torch", "transformers") if versions.get(key)
        ),
    }


def _model_in_words(run: Run) -> str:
    recipe, record = run.recipe, run.record
    if run.kind == "distillation":
        student = recipe.get("student") or {}
        teacher = record.get("teacher") or record.get("teacher_cache") or "toy teacher"
        name = student.get("model") or f"{student.get('layers')} × {student.get('hidden_size')}"
        return f"student {name}, teacher {teacher}"
    model = recipe.get("model") or {}
    return str(model.get("model") or f"{model.get('layers')} × {model.get('hidden_size')}")


def _training_in_words(recipe: Mapping[str, Any]) -> str:
    optimisation, objective = recipe.get("optimisation") or {}, recipe.get("objective") or {}
    steps = optimisation.get("epochs") or optimisation.get("steps")
    unit = "epochs" if optimisation.get("epochs") else "steps"
    parts = [f"{steps:,} {unit}" if isinstance(steps, int) else "", _per_step(optimisation)]
    for key, name in (("alpha", "α"), ("temperature", "T"), ("projection", "projection")):
        if objective.get(key) is not None:
            parts.append(f"{name} {objective[key]}")
    run = recipe.get("run") or {}
    seeds = run.get("seeds", run.get("seed"))
    if seeds is not None:
        several = isinstance(seeds, list) and len(seeds) > 1
        listed = words.listed([str(seed) for seed in seeds]) if isinstance(seeds, list) else seeds
        parts.append(f"seed{'s' * several} {listed}")
    return ", ".join(part for part in parts if part)


def _per_step(optimisation: Mapping[str, Any]) -> str:
    if optimisation.get("batch_tokens"):
        return f"{optimisation['batch_tokens']:,} tokens a step"
    size = optimisation.get("batch_size")
    return f"{size:,} sequences a step" if isinstance(size, int) else ""


def _downloads(material: Material, costs: Mapping[str, Cost]) -> list[tuple[str, str, str]]:
    """Name, data URL and words of the raw numbers: what is small as JSON, curves compressed, as some are long."""
    curves = {key: value for key, value in material.files.items() if key.endswith(".jsonl")}
    rest = {key: value for key, value in material.files.items() if key not in curves}
    if costs:
        rest["cost"] = {name: asdict(cost) for name, cost in costs.items()}
    found = [("report.json", "application/json", _json(rest), "scores, recipes, records")]
    if curves:
        packed = gzip.compress(_json(curves), mtime=0)
        found.append(("curves.json.gz", "application/gzip", packed, "all logged lines"))
    return [
        (
            name,
            f"data:{kind};base64,{base64.b64encode(data).decode()}",
            f"{text}, {words.size(len(data))}",
        )
        for name, kind, data, text in found
    ]


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, default=str).encode(errors="backslashreplace")
