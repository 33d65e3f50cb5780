"""Scores as figures in points of 100, each system in its role: teacher, own, floor or published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from comet.report.charts import Bar, Role
from comet.report.reading import Material, Scores
from comet.report.words import listed, overlapping

PUBLISHED = Path(__file__).with_name("published.yaml")
MEASURES = {
    "weighted_f1": "F1 weighted by class size",
    "f1": "entity-level F1",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
}
_ORDER: tuple[Role, ...] = ("teacher", "own", "twin", "floor", "published")
_ROLES: dict[str, Role] = {"teacher": "teacher", "tfidf": "floor", "mlm": "twin", "random": "twin"}


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, in points, with its 95 % interval and deviation where they are known."""

    mean: float
    low: float | None = None
    high: float | None = None
    std: float | None = None

    def bar(self, label: str, role: Role) -> Bar:
        """As a row of a chart."""
        return Bar(label, self.mean, self.low, self.high, role)


@dataclass(frozen=True)
class Share:
    """What a system keeps of its teacher, in percent: raw, and of what the teacher has above the floor."""

    teacher: str
    raw: Figure | None
    above_floor: Figure | None


@dataclass(frozen=True)
class System:
    """A row of the table of scores.

    Attributes:
        name: distinct in its group.
        role: teacher, own, twin (the same model undistilled), floor or published.
        languages: of the main measure.
        mean: over the trained languages.
        unseen_mean: over the others.
        others: further measures' means.
        seeds: how many; 0 where it is not known.
        size: parameters, encoder_parameters, bytes, as far as known.
        retention: against its teacher, or None.
        scores: where it is from; None for a published one and for a floor known from others' files alone.
    """

    name: str
    role: Role
    languages: Mapping[str, Figure]
    mean: Figure | None
    unseen_mean: Figure | None = None
    others: Mapping[str, Figure] = field(default_factory=dict)
    seeds: int = 0
    size: Mapping[str, float] = field(default_factory=dict)
    retention: Share | None = None
    scores: Scores | None = None


@dataclass(frozen=True)
class Group:
    """Systems scored on the same task, split and measure.

    Attributes:
        task: its name.
        split: dev or test.
        measure: the main one.
        trained: languages of the mean.
        unseen: the other ones.
        systems: teacher first, then the user's in the order given, floor, published.
        published: the entry of published.yaml, or None.
        left_out: sentences on what could not stand beside the others.
    """

    task: str
    split: str
    measure: str
    trained: Sequence[str]
    unseen: Sequence[str]
    systems: Sequence[System]
    published: Mapping[str, Any] | None
    left_out: Sequence[str]

    @property
    def floor(self) -> System | None:
        """The TF-IDF baseline, where one was measured."""
        return next((system for system in self.systems if system.role == "floor"), None)

    @property
    def own(self) -> list[System]:
        """The user's systems, their undistilled twins behind them."""
        return [system for system in self.systems if system.role in ("own", "twin")]


def groups_of(material: Material, published: str | None) -> list[Group]:
    """The scores of a report, those of one task, split and measure together.

    Args:
        material: what was read.
        published: `none`, a key of published.yaml for all tasks, or None: that of the task's own name.

    Raises:
        ValueError: nothing is published under that key.
    """
    known = read_published()
    if published not in (None, "none", *known):
        raise ValueError(f"--published: got {published}, expected none or {', '.join(known)}")
    keys = dict.fromkeys(one.group for one in material.scores)
    return [
        _group(key, [one for one in material.scores if one.group == key], known, published)
        for key in keys
    ]


def read_published() -> dict[str, Any]:
    """What others published, by task."""
    return cast(dict[str, Any], yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")))


def figure(value: Any, measure: str) -> Figure | None:
    """A number, or a summary over seeds, or measures by name: as a figure, None where there is none."""
    if isinstance(value, int | float):
        return Figure(100 * value)
    if not isinstance(value, Mapping):
        return None
    if measure in value:
        return figure(value[measure], measure)
    if not isinstance(value.get("mean"), int | float):
        return None
    low, high, std = (
        None if value.get(key) is None else 100 * value[key] for key in ("low", "high", "std")
    )
    return Figure(100 * value["mean"], low, high, std)


def _group(
    key: tuple[str, str, str],
    scores: Sequence[Scores],
    known: Mapping[str, Any],
    published: str | None,
) -> Group:
    task, split, measure = key
    named = [one.content.get("retention") or {} for one in scores]
    teachers = {str(one["teacher"]) for one in named if one.get("teacher")}
    floors = [one.content["floor"] for one in scores if one.content.get("floor")]
    floor_names = {str(floor.get("system", "tfidf")) for floor in floors} | {"tfidf"}
    systems = [_system(one, teachers, floor_names) for one in scores]
    left_out = []
    if floors and not any(system.role == "floor" for system in systems):
        systems.append(_floor(floors[0], measure))
    elif not any(system.role == "floor" for system in systems):
        left_out.append(
            "No TF-IDF floor was measured here (python -m comet.evaluate --floor tfidf)."
        )
    absent = teachers - {str(one.content.get("system")) for one in scores}
    if absent and not any(system.role == "teacher" for system in systems):
        left_out.append(
            f"The teacher {', '.join(sorted(absent))} has no scores among these folders: it has no bar."
        )
    trained = list(
        dict.fromkeys(
            language
            for one in scores
            for language, found in one.content["languages"].items()
            if found.get("trained", True)
        )
    )
    entry = None if published == "none" else known.get(published or task)
    if entry is not None and (split != "test" or measure != entry["measure"]):
        left_out.append(
            f"Published figures are {MEASURES[entry['measure']]} on test and are not set beside {split}."
        )
        entry = None
    if entry is not None:
        systems += _published(entry, trained)
    unseen = dict.fromkeys(name for one in scores for name in one.content["languages"])
    systems.sort(key=lambda system: _ORDER.index(system.role))
    return Group(
        task,
        split,
        measure,
        trained,
        [name for name in unseen if name not in trained],
        systems,
        entry,
        left_out + _of_other_data(scores) + _overlaps(scores),
    )


def _of_other_data(scores: Sequence[Scores]) -> list[str]:
    """Scores side by side that are not of the same examples are no comparison."""
    prints = {str(one.content["task"].get("fingerprint")) for one in scores}
    if len(prints) < 2:
        return []
    return [
        "These systems were not all scored on the same data (their fingerprints differ): differences between "
        "them may be differences of the data."
    ]


def _overlaps(scores: Sequence[Scores]) -> list[str]:
    """Which scores are partly of texts that a system has read before."""
    found = []
    for one in scores:
        others = "train or dev" if one.content["split"] == "test" else "train"
        its = overlapping(one.content["languages"], one.measure)
        if its:
            found.append(
                f"{one.content.get('system')}: some of its {one.content['split']} texts stand in {others} too: "
                f"{listed(its)}."
            )
    return found


def _system(one: Scores, teachers: set[str], floors: set[str]) -> System:
    content, measure = one.content, one.measure
    name = str(content.get("system"))
    role: Role = "teacher" if name in teachers else "floor" if name in floors else "own"
    role = _ROLES.get(one.model or "", role)
    languages = {key: figure(value, measure) for key, value in content["languages"].items()}
    others = {
        key: figure(value, key)
        for key, value in (content.get("mean") or {}).items()
        if key != measure
    }
    size = content.get("size") or {}
    return System(
        one.name,
        role,
        {key: value for key, value in languages.items() if value is not None},
        figure(content.get("mean"), measure),
        figure(content.get("unseen_mean"), measure),
        {key: value for key, value in others.items() if value is not None and key in MEASURES},
        len(content["seeds"]),
        {key: value for key, value in size.items() if value},
        _share(content.get("retention"), measure),
        one,
    )


def _share(retention: Any, measure: str) -> Share | None:
    if not isinstance(retention, Mapping):
        return None
    return Share(
        str(retention.get("teacher")),
        figure(retention.get("raw"), measure),
        figure(retention.get("above_floor"), measure),
    )


def _floor(floor: Mapping[str, Any], measure: str) -> System:
    languages = {
        key: figure(value, measure) for key, value in (floor.get("languages") or {}).items()
    }
    return System(
        str(floor.get("system", "tfidf")),
        "floor",
        {key: value for key, value in languages.items() if value is not None},
        figure(floor.get("mean"), measure),
    )


def _published(entry: Mapping[str, Any], trained: Sequence[str]) -> list[System]:
    """A published mean stands beside ours only where it is over the same languages."""
    found = []
    for one in entry["systems"]:
        languages = {key: Figure(100 * value) for key, value in one["languages"].items()}
        mean = Figure(100 * one["mean"]) if set(languages) == set(trained) else None
        shown = {key: value for key, value in languages.items() if key in trained}
        size = {"parameters": one["parameters"]}
        if shown:
            found.append(System(str(one["name"]), "published", shown, mean, size=size))
    return found
