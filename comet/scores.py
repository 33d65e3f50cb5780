"""Scores of a system over its seeds: mean, deviation and interval, against teacher and floor.

An interval is a percentile bootstrap (Efron and Tibshirani, 1993): examples are drawn again, with replacement and
within each language, and so are seeds; 95 % of what comes out lies within it. Draws depend on nothing but the language
and the numbers of examples and seeds, so that two systems are compared on the same draws: differences and ratios are
paired.
"""

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from comet.corpus.problems import Problem
from comet.measures import (
    Array,
    count_examples,
    main_measure,
    measures,
    measures_by_class,
)
from comet.predictions import PredictedExample
from comet.tasks.task import Task

SCHEMA = 1
RESAMPLES = 1000
_LOW, _HIGH = 2.5, 97.5  # percentiles
_DEGENERATE = 0.01  # share of resamples without a denominator, above which a ratio has no interval

Runs = Mapping[int, Sequence[PredictedExample]]


class System(NamedTuple):
    """A system to compare with.

    Attributes:
        name: what it is called in tables.
        runs: seed → predictions.
    """

    name: str
    runs: Runs


@dataclass(frozen=True)
class Measured:
    """One measure of one system.

    Attributes:
        values: `[seeds]`.
        resamples: `[RESAMPLES]`, each the mean over as many seeds, drawn again.
    """

    values: Array
    resamples: Array

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.values.mean())

    def as_json(self) -> dict[str, Any]:
        """Mean, sample standard deviation over seeds (null for one seed), interval, and the value of each seed."""
        deviation = float(self.values.std(ddof=1)) if len(self.values) > 1 else None
        return {
            "mean": self.mean,
            "std": deviation,
            **_interval(self.resamples),
            "values": self.values.tolist(),
        }


def summary(
    task: Task,
    runs: Runs,
    *,
    system: str,
    split: str,
    data: str,
    fingerprint: str,
    trained_on: Sequence[str],
    size: Mapping[str, int] | None = None,
    problems: Iterable[Problem] = (),
    overlap: Mapping[str, Mapping[str, Collection[int]]] | None = None,
    floor: System | None = None,
    teacher: System | None = None,
) -> dict[str, Any]:
    """Everything about one system on one split, as JSON (`scores-SPLIT.json`).

    Args:
        task: with its labels.
        runs: seed → predictions, all of the same examples.
        system: what it is called in tables.
        split: "dev" or "test".
        data: where the examples are from.
        fingerprint: of the examples, see `TaskData`.
        trained_on: languages; the mean is over these, that of the others is `unseen_mean`.
        size: parameters, encoder_parameters and bytes.
        problems: rows that were left out.
        overlap: language → split → rows whose texts the models have read in that split; None where nobody knows.
        floor: what a student has to beat.
        teacher: what it is to come near.

    Raises:
        ValueError: predictions of different examples.
    """
    found = measured(task, runs)
    seen = [language for language in found if language in trained_on]
    unseen = [language for language in found if language not in trained_on]
    measure = main_measure(task)
    known = {} if overlap is None else {name: overlap[name] for name in found}
    others = {name: _others(task, runs, name, its, found[name]) for name, its in known.items()}
    floored = None if floor is None else _main(task, runs, floor, seen)
    return {
        "schema": SCHEMA,
        "system": system,
        "split": split,
        "measure": measure,
        "task": {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "data": data,
            "fingerprint": fingerprint,
        },
        "trained_on": list(trained_on),
        "size": None if size is None else dict(size),
        "seeds": list(runs),
        "resamples": RESAMPLES,
        "languages": {
            language: {
                **_language(task, runs, language, found[language], language in trained_on),
                "overlap": _overlap_as_json(known[language], others[language]) if known else None,
            }
            for language in found
        },
        "mean": _means(found, seen),
        "mean_without_overlap": _means_of_others(others, seen),
        "unseen_mean": _means(found, unseen),
        "problems": [problem._asdict() for problem in problems],
        "floor": None
        if floor is None or floored is None
        else {"system": floor.name, **_by_language(floored)},
        "retention": None
        if teacher is None or not seen
        else _retention(
            teacher.name,
            {name: found[name][measure] for name in seen},
            _main(task, runs, teacher, seen),
            floored,
        ),
    }


def difference(
    first: Runs, second: Runs, task: Task, languages: Sequence[str] | None = None
) -> dict[str, Any]:
    """How much the main measure of a first system is above that of a second, averaged over languages.

    Args:
        first: seed → predictions.
        second: the same examples; where it has as many seeds, they are paired in order.
        task: with its labels.
        languages: to average over, None for all of `first`.

    Returns:
        measure, mean, and its paired interval low to high; the same for each language in `languages`.

    Raises:
        ValueError: predictions of different examples, or none of a language.
    """
    chosen = languages or _languages(first)
    ours = _main(task, first, System("first", first), chosen)
    theirs = _main(task, first, System("second", second), chosen)
    by_language = {
        name: {
            "mean": ours[name].mean - theirs[name].mean,
            **_interval(ours[name].resamples - theirs[name].resamples),
        }
        for name in chosen
    }
    one, other = _mean(ours.values()), _mean(theirs.values())
    return {
        "measure": main_measure(task),
        "mean": one.mean - other.mean,
        **_interval(one.resamples - other.resamples),
        "languages": by_language,
    }


def measured(task: Task, runs: Runs) -> dict[str, dict[str, Measured]]:
    """Every measure by language, in alphabetical order of languages.

    Args:
        task: with its labels.
        runs: seed → predictions, all of the same examples.

    Raises:
        ValueError: there are none, or seeds have different examples.
    """
    return {language: _measured(task, runs, language) for language in _languages(runs)}


def _measured(task: Task, runs: Runs, language: str) -> dict[str, Measured]:
    by_seed = [_of(run, language) for run in runs.values()]
    _require_same(by_seed[0], by_seed[1:], language)
    counts_SNK = np.stack([count_examples(task, run) for run in by_seed])
    weights_RN = _weights(language, counts_SNK.shape[1])
    resampled_SRK = weights_RN @ counts_SNK.astype(np.float32)  # exact: whole numbers below 2^24
    drawn_RS = _drawn_seeds(len(by_seed))
    each = np.arange(RESAMPLES)[:, None]
    exact = measures(task, counts_SNK.sum(1))
    if task.kind == "sequence":
        exact = _by_scikit_learn(by_seed)
    return {
        name: Measured(exact[name], values_SR[drawn_RS, each].mean(1))
        for name, values_SR in measures(task, resampled_SRK).items()
    }


def _by_scikit_learn(by_seed: Sequence[Sequence[PredictedExample]]) -> dict[str, Array]:
    """The measures of each seed as the field's own library computes them."""
    values: dict[str, list[float]] = {"weighted_f1": [], "macro_f1": [], "accuracy": []}
    for run in by_seed:
        gold, predicted = [one.gold for one in run], [one.predicted for one in run]
        for average in ("weighted", "macro"):
            score = f1_score(gold, predicted, average=average, zero_division=0)
            values[f"{average}_f1"].append(float(score))
        values["accuracy"].append(float(accuracy_score(gold, predicted)))
    return {name: np.array(numbers) for name, numbers in values.items()}


def _weights(language: str, examples: int) -> np.ndarray:
    """How often each resample draws each example, `[RESAMPLES, N]` float32, the same for every system."""
    generator = np.random.default_rng([zlib.crc32(language.encode()), examples])
    drawn = generator.integers(examples, size=(RESAMPLES, examples))
    drawn += np.arange(RESAMPLES)[:, None] * examples
    counted = np.bincount(drawn.ravel(), minlength=RESAMPLES * examples)
    return counted.reshape(RESAMPLES, examples).astype(np.float32)


def _drawn_seeds(seeds: int) -> np.ndarray:
    """Which seeds each resample averages over, `[RESAMPLES, S]`, the same for every language and system."""
    return np.random.default_rng(seeds).integers(seeds, size=(RESAMPLES, seeds))


def _languages(runs: Runs) -> list[str]:
    if not runs or not all(runs.values()):
        raise ValueError("predictions: got none, expected one or more seeds with predictions")
    return sorted({one.language for run in runs.values() for one in run})


def _of(run: Sequence[PredictedExample], language: str) -> list[PredictedExample]:
    return sorted((one for one in run if one.language == language), key=lambda one: one.row)


def _require_same(
    expected: Sequence[PredictedExample],
    others: Iterable[Sequence[PredictedExample]],
    language: str,
) -> None:
    wanted = [(one.row, one.gold) for one in expected]
    for other in others:
        if [(one.row, one.gold) for one in other] != wanted:
            raise ValueError(
                f"predictions: {language} has {len(other)} examples in one run and {len(wanted)} in another, or other "
                "labels: they can only be compared on the same data"
            )


def _main(
    task: Task, reference: Runs, system: System, languages: Sequence[str]
) -> dict[str, Measured]:
    """The main measure of a system on the examples of a reference."""
    wanted = next(iter(reference.values()))
    chosen = {
        seed: [one for one in run if one.language in languages] for seed, run in system.runs.items()
    }
    found = {}
    for language in languages:
        _require_same(
            _of(wanted, language), (_of(run, language) for run in chosen.values()), language
        )
        found[language] = _measured(task, chosen, language)[main_measure(task)]
    return found


def _others(
    task: Task,
    runs: Runs,
    language: str,
    overlap: Mapping[str, Collection[int]],
    found: Mapping[str, Measured],
) -> Mapping[str, Measured] | None:
    """The measures over the examples that stand in no other split; None where all do."""
    rows = set().union(*overlap.values())
    if not rows:
        return found
    rest = {
        seed: [one for one in run if one.language == language and one.row not in rows]
        for seed, run in runs.items()
    }
    return _measured(task, rest, language) if all(rest.values()) else None


def _overlap_as_json(
    overlap: Mapping[str, Collection[int]], others: Mapping[str, Measured] | None
) -> dict[str, Any]:
    """How many examples stand in each other split, in any, and the measures of the rest."""
    return {
        **{split: len(set(rows)) for split, rows in overlap.items()},
        "any": len(set().union(*overlap.values())),
        "without": None
        if others is None
        else {name: one.as_json() for name, one in others.items()},
    }


def _means_of_others(
    others: Mapping[str, Mapping[str, Measured] | None], languages: Sequence[str]
) -> dict[str, Any] | None:
    """The means over languages, None where one has no example that stands in no other split."""
    known = {name: its for name, its in others.items() if its is not None}
    if not set(languages) <= known.keys():
        return None
    return _means(known, languages)


def _language(
    task: Task, runs: Runs, language: str, found: Mapping[str, Measured], trained: bool
) -> dict[str, Any]:
    """What the summary says of one language."""
    counts_SK = np.stack([count_examples(task, _of(run, language)).sum(0) for run in runs.values()])
    result: dict[str, Any] = {
        "examples": len(_of(next(iter(runs.values())), language)),
        "trained": trained,
        **{name: one.as_json() for name, one in found.items()},
        "classes": measures_by_class(task, counts_SK),
    }
    if task.kind == "sequence":
        size = len(task.labels)
        result["confusion"] = counts_SK.sum(0).reshape(size, size).astype(int).tolist()
    return result


def _mean(several: Iterable[Measured]) -> Measured:
    """The mean over languages, seed by seed and resample by resample."""
    found = list(several)
    return Measured(
        np.mean([one.values for one in found], axis=0),
        np.mean([one.resamples for one in found], axis=0),
    )


def _means(
    found: Mapping[str, Mapping[str, Measured]], languages: Sequence[str]
) -> dict[str, Any] | None:
    if not languages:
        return None
    names = found[languages[0]]
    return {name: _mean(found[one][name] for one in languages).as_json() for name in names}


def _by_language(found: Mapping[str, Measured]) -> dict[str, Any]:
    return {
        "mean": _mean(found.values()).as_json() if found else None,
        "languages": {language: one.as_json() for language, one in found.items()},
    }


def _retention(
    teacher: str,
    ours: Mapping[str, Measured],
    theirs: Mapping[str, Measured],
    floor: Mapping[str, Measured] | None,
) -> dict[str, Any]:
    """Student over teacher, as they are and both less the floor."""

    def ratios(subtracted: Mapping[str, Measured] | None) -> dict[str, Any]:
        def ratio(languages: Sequence[str]) -> dict[str, Any]:
            top, bottom = (_mean(one[name] for name in languages) for one in (ours, theirs))
            if subtracted is not None:
                level = _mean(subtracted[name] for name in languages)
                top, bottom = _less(top, level), _less(bottom, level)
            return _ratio(top, bottom)

        return {**ratio(list(ours)), "languages": {name: ratio([name]) for name in ours}}

    return {
        "teacher": teacher,
        "raw": ratios(None),
        "above_floor": None if floor is None else ratios(floor),
    }


def _less(one: Measured, other: Measured) -> Measured:
    """The difference of means; seeds are not told apart."""
    return Measured(np.array([one.mean - other.mean]), one.resamples - other.resamples)


def _ratio(top: Measured, bottom: Measured) -> dict[str, Any]:
    """A quotient of means with its interval; null where what is divided by is not above zero."""
    if bottom.mean <= 0:
        return {"mean": None, "low": None, "high": None}
    usable = bottom.resamples > 0
    interval: dict[str, float | None] = {"low": None, "high": None}
    if usable.mean() >= 1 - _DEGENERATE:
        interval = dict(_interval(top.resamples[usable] / bottom.resamples[usable]))
    return {"mean": top.mean / bottom.mean, **interval}


def _interval(resamples: Array) -> dict[str, float]:
    low, high = np.percentile(resamples, [_LOW, _HIGH])
    return {"low": float(low), "high": float(high)}
