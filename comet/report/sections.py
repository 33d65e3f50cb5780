"""The parts of a page, as its template reads them: sentences, tables, and panels with their captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comet.report import charts, curves, headlines, words
from comet.report.charts import Bar, Point, Role
from comet.report.curves import Line
from comet.report.figures import MEASURES, Group, System
from comet.report.maps import Maps
from comet.report.measuring import Cost
from comet.report.reading import Curves, Experiment, Material, Run

MANY = 12  # systems, above which languages are told apart in the table alone
MOST_RUNS = 24  # whose curves are drawn
_TERMS = {
    "kd": "softened KL to the teacher, times T²",
    "attention": "attention term",
    "mlm": "masked loss",
    "labels": "cross-entropy of the labels",
    "loss": "loss",
}
_EVALUATED = {
    "kl": "KL to the teacher on held-out text (nats)",
    "weighted_f1": "F1 weighted by class size on dev",
    "f1": "entity-level F1 on dev",
    "macro_f1": "macro F1 on dev",
    "loss": "masked loss on held-out text (nats)",
}


@dataclass(frozen=True)
class Panel:
    """A chart with what stands above and below it; `svg` is trusted, as this package drew it."""

    title: str
    svg: str
    caption: str = ""


@dataclass
class Names:
    """Hands out names for figures, distinct in a page."""

    taken: int = 0

    def next(self) -> str:
        """The next one."""
        self.taken += 1
        return f"figure-{self.taken}"


@dataclass(frozen=True)
class Training:
    """The curves of one model."""

    name: str
    run: Run
    panels: list[Panel]


@dataclass
class Colours:
    """A language has one colour, and one dash, on the whole page."""

    order: dict[str, int] = field(default_factory=dict)

    def of(self, language: str) -> int:
        """The number of its line."""
        return self.order.setdefault(language, len(self.order))


def score_panels(group: Group, names: Names) -> list[Panel]:
    """The mean and each language, systems as bars."""
    count = len(group.trained)
    mean = f"Mean of {count} language{'s' if count != 1 else ''}"
    columns = [(mean, {system.name: system.mean for system in group.systems})]
    if len(group.systems) <= MANY:
        columns += [
            (language, {system.name: system.languages.get(language) for system in group.systems})
            for language in (*group.trained, *group.unseen)
        ]
    found = []
    for title, values in columns:
        rows = [
            value.bar(system.name, system.role)
            for system in group.systems
            if (value := values[system.name]) is not None
        ]
        if not rows:
            continue
        floor = next((row.value for row in rows if row.role == "floor"), None)
        unseen = ", not trained on" if title in group.unseen else ""
        told = f"{MEASURES.get(group.measure, group.measure)} on {group.split}, {title}"
        svg = charts.bars(names.next(), told, rows, floor)
        found.append(Panel(f"{title}{unseen}", svg))
    return found


def roles_in(groups: Sequence[Group]) -> list[tuple[Role, str]]:
    """Roles that occur, with what the key to the charts says of each."""
    told: dict[Role, str] = {
        "own": "this report's systems",
        "twin": "the same model, undistilled",
        "teacher": "teacher",
        "floor": "TF-IDF floor",
        "published": "published, not measured here",
    }
    present = {system.role for group in groups for system in group.systems}
    return [(role, text) for role, text in told.items() if role in present]


def comparison_panels(experiment: Experiment, names: Names) -> list[Panel]:
    """Differences of an experiment's cells to its first."""
    cells = experiment.content["cells"]
    rows = [
        Bar(
            str(cell["name"]),
            100 * cell["difference"]["mean"],
            100 * cell["difference"]["low"],
            100 * cell["difference"]["high"],
        )
        for cell in cells
        if cell.get("difference")
    ]
    if not rows:
        return []
    title = f"Difference to {experiment.content['compared_with']}, in points"
    caption = "Paired bootstrap over examples and seeds, 95 % intervals. One that crosses the line tells no difference."
    return [Panel(title, charts.forest(names.next(), title, rows), caption)]


def cost_panels(group: Group, costs: Mapping[str, Cost], names: Names) -> list[Panel]:
    """What a system is worth against what it costs, by encoder parameters, latency and memory."""
    found = []
    ways = (
        (
            "Encoder size",
            "encoder parameters, without embeddings",
            lambda one: one.size.get("encoder_parameters"),
        ),
        ("Latency", "ms for one text of 32 tokens", lambda one: _cost(costs, one, "milliseconds")),
        (
            "Memory",
            "bytes at the peak, beyond the libraries",
            lambda one: _cost(costs, one, "bytes"),
        ),
        ("Whole size", "parameters, embeddings included", lambda one: one.size.get("parameters")),
    )
    measured = [system for system in group.systems if system.mean is not None]
    for title, unit, cost_of in ways:
        points = [
            Point(system.mean.bar(system.name, system.role), cost, True)
            for system in measured
            if (cost := cost_of(system)) and system.mean is not None
        ]
        if len(points) > MANY:
            best = charts.frontier(points)
            points = [Point(one.bar, one.cost, one in best) for one in points]
        if len(points) > 1:
            absent = [
                system.name
                for system in measured
                if not cost_of(system) and system.role != "published"
            ]
            caption = f"Without this figure: {words.listed(absent)}." if absent else ""
            svg = charts.pareto(names.next(), f"F1 against {title.lower()}", points, unit)
            found.append(Panel(title, svg, caption))
    return found


def trainings(material: Material, names: Names, colours: Colours) -> list[Training]:
    """Curves of each run; of a fine-tuning that of its first seed."""
    found: list[Training] = []
    for run in material.runs:
        for one in run.curves[:1]:
            panels = [*_training_panel(one, names, colours), *_held_out_panel(one, names, colours)]
            if panels and len(found) < MOST_RUNS:
                label = f"{run.name}, {one.name}" if one.name else run.name
                found.append(Training(label, run, panels))
            elif panels:
                material.notes.append(
                    f"{run.name}: its curves are not drawn, only those of {MOST_RUNS} runs."
                )
    return found


def map_pairs(maps: Maps, names: Names) -> list[dict[str, Any]]:
    """Teacher's and student's map of each language, on one scale."""
    found = []
    for pair in maps.pairs:
        most = max(max(map(max, pair.teacher)), max(map(max, pair.student)))
        svgs = [
            curves.attention(
                names.next(),
                f"Attention of the {whose}, {pair.language}",
                [_visible(token) for token in pair.tokens],
                weights,
                most,
            )
            for whose, weights in (("teacher", pair.teacher), ("student", pair.student))
        ]
        found.append({"pair": pair, "most": most, "teacher": svgs[0], "student": svgs[1]})
    return found


def confusions(group: Group) -> tuple[System, list[dict[str, Any]]] | None:
    """Matrices of the leading system by language, with the share of each row."""
    lead = headlines.leading([group])
    if lead is None or lead[1].scores is None:
        return None
    content = lead[1].scores.content
    found: list[dict[str, Any]] = []
    for language in (*group.trained, *group.unseen):
        matrix = content["languages"].get(language, {}).get("confusion")
        if matrix:
            rows = [[(count, count / max(sum(row), 1)) for count in row] for row in matrix]
            found.append({"language": language, "rows": rows})
    if not found:
        return None
    return lead[1], found


def _training_panel(one: Curves, names: Names, colours: Colours) -> list[Panel]:
    keys = list(dict.fromkeys(key for line in one.metrics for key in line if "/" in key))
    term = keys[0].split("/")[0] if keys else "loss"
    keys = [key for key in keys if key.startswith(f"{term}/")] or ["loss"]
    lines, width = [], 1
    for key in keys:
        logged = [line for line in one.metrics if isinstance(line.get(key), int | float)]
        if logged:
            steps = [line["step"] for line in logged]
            steps, values, width = curves.thinned(steps, [line[key] for line in logged])
            name = key.split("/")[-1]
            lines.append(Line(colours.of(name) if "/" in key else 0, name, steps, values))
    if not lines:
        return []
    title = f"Training: {_TERMS.get(term, term)}"
    caption = f"Each point is the mean of {width} logged lines. " if width > 1 else ""
    svg = curves.curves(names.next(), title, lines, logarithmic=_is_wide(lines))
    return [Panel(title, svg, f"{caption}By optimizer step.")]


def _held_out_panel(one: Curves, names: Names, colours: Colours) -> list[Panel]:
    if len(one.evaluations) < 2:
        return []
    by_language: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for line in one.evaluations:
        for language, found in line.items():
            if isinstance(found, Mapping) and language not in ("all", "mean"):
                by_language.setdefault(language, []).append((line["step"], found))
    measured = {key for some in by_language.values() for _, found in some for key in found}
    measure = next((key for key in _EVALUATED if key in measured), None)
    if measure is None:
        return []
    lines = []
    for language, some in by_language.items():
        points = {step: found[measure] for step, found in some if found.get(measure) is not None}
        scale = 100 if measure.endswith("f1") else 1
        if points:
            values = [scale * value for value in points.values()]
            lines.append(Line(colours.of(language), language, list(points), values))
    if not lines:
        return []
    title = _EVALUATED[measure]
    svg = curves.curves(names.next(), title, lines, marked=True, logarithmic=_is_wide(lines))
    return [Panel(title[0].upper() + title[1:], svg, "By optimizer step.")]


def _is_wide(lines: Sequence[Line]) -> bool:
    """Whether values span so much that only logarithms show them all."""
    values = [value for line in lines for value in line.values]
    return min(values) > 0 and max(values) / min(values) > 30


def _cost(costs: Mapping[str, Cost], system: System, name: str) -> float | None:
    cost = costs.get(system.name)
    return None if cost is None else getattr(cost, name)


def _visible(token: str) -> str:
    """A piece as it is read: SentencePiece's ▁, which starts a word, as a space would be lost here."""
    return re.sub(r"^(Ġ|▁)", "·", token)
