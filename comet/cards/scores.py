"""What a model is worth, in the words and the metadata of its card."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from comet.cards.facts import Facts
from comet.cards.markdown import code, escaped
from comet.cards.training import datasets
from comet.report.words import listed, overlapping

_MEASURES = {"weighted_f1": "weighted F1", "f1": "F1 of entities"}
_AGREEMENT = ["", "KL (nats per token)", "same likeliest piece", "pseudo-perplexity"]


def score_words(facts: Facts) -> str:
    """Tables: of a task where it was measured on one, else of held-out text; empty where there are none."""
    if facts.made == "distilled" and facts.held_out:
        rows = [
            [
                _mean_or(name),
                f"{one['kl']:.4f}",
                f"{one['top1']:.1%}",
                _perplexity(one.get("pseudo_perplexity")),
            ]
            for name, one in facts.held_out.items()
        ]
        return f"Agreement with the teacher on held-out text:\n\n{table(_AGREEMENT, rows)}"
    if facts.made == "adapted" and facts.held_out:
        rows = [[_mean_or(name), f"{value:.3f}"] for name, value in facts.held_out.items()]
        return f"On held-out text:\n\n{table(['', 'masked loss (nats per token)'], rows)}"
    return "\n\n".join(_of_split(facts, one) for one in facts.scores)


def results(facts: Facts) -> list[EvalResult]:
    """For the hub: this model's main measure by language, on test, or on dev where that is all there is."""
    if facts.tuned is None or not facts.scores:
        return []
    scores = facts.scores[0]
    task = scores["task"]["name"]
    found = []
    for language, one in _languages(facts, scores).items():
        value = _own(facts, scores, one[scores["measure"]])
        if value is not None:
            found.append(
                EvalResult(
                    task_type=facts.kind,
                    dataset_type=(datasets(facts) or [task])[0],
                    dataset_name=f"{task} ({language})",
                    dataset_config=language,
                    dataset_split=scores["split"],
                    metric_type="f1",
                    metric_name=_MEASURES[scores["measure"]],
                    metric_value=round(value, 4),
                )
            )
    return found


def floor_words(facts: Facts) -> str:
    """Whether character n-grams do better: plainly."""
    measured = next((one for one in facts.scores if one["floor"]), None)
    if measured is None:
        return (
            "Not compared with TF-IDF of character n-grams yet: "
            "`python -m comet.evaluate --run RUN --floor tfidf` does that."
        )
    floor, measure, split = measured["floor"], measured["measure"], escaped(measured["split"])
    system = escaped(floor["system"])
    pairs = {
        name: (found[measure]["mean"], floor["languages"][name]["mean"])
        for name, found in _languages(facts, measured).items()
        if name in floor["languages"]
    }
    worse = [
        f"{escaped(name)} ({_points(theirs)} against {_points(own)})"
        for name, (own, theirs) in pairs.items()
        if theirs > own
    ]
    if not worse:
        better = listed([escaped(one) for one in pairs])
        return f"Better than the floor, {system}, on {better} ({split})."
    return (
        f"The floor, {system}, is better than this model on {listed(worse)} ({split}): "
        "use that there."
    )


def has_unseen(facts: Facts) -> bool:
    """Whether it was measured in languages that it was not trained on."""
    return any(
        not found["trained"]
        for scores in facts.scores
        for found in _languages(facts, scores).values()
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: a column of names, and others of numbers."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def _of_split(facts: Facts, scores: Mapping[str, Any]) -> str:
    """One split: this model, the mean over seeds with its interval, the floor."""
    measure, floor, seeds = scores["measure"], scores["floor"], scores["seeds"]
    several = len(seeds) > 1
    head = ["", "examples", "this model", *(["mean of the seeds"] if several else [])]
    head += ["95 % interval", *(["floor"] if floor else [])]
    rows = []
    for name, found in _languages(facts, scores).items():
        one = found[measure]
        row = [
            escaped(name) if found["trained"] else f"{escaped(name)} (not trained on)",
            f"{found['examples']:,}",
            _points(_own(facts, scores, one)),
            *([_points(one["mean"])] if several else []),
            f"{_points(one['low'])} to {_points(one['high'])}",
        ]
        if floor:
            least = floor["languages"].get(name)
            row.append("–" if least is None else _points(least["mean"]))
        rows.append(row)
    chosen = ", by which it was chosen" if scores["split"] == "dev" else ""
    of = f" ({len(seeds)} seeds)" if several else ""
    name = _MEASURES[measure]
    said = (
        f"{name[0].upper()}{name[1:]} on {escaped(scores['task']['name'])}, {escaped(scores['split'])}{chosen}, "
        f"in points of 100{of}:\n\n{table(head, rows)}"
    )
    overlap = overlapping(_languages(facts, scores), measure)
    if overlap:
        others = "train or dev" if scores["split"] == "test" else "train"
        seen = listed([escaped(one) for one in overlap])
        said += f"\n\nSome of these texts stand in {others} too, so that the model has seen them: {seen}."
    retention = scores["retention"]
    if retention is None or retention["raw"]["mean"] is None:
        return said
    teacher = code(retention["teacher"])
    return (
        f"{said}\n\nIt keeps {retention['raw']['mean']:.1%} of the score of its teacher, {teacher}."
    )


def _languages(facts: Facts, scores: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of this model: where each language has its own, of that one alone."""
    alone = facts.is_tfidf or facts.recipe["run"]["per_language"]
    return {
        name: found
        for name, found in scores["languages"].items()
        if not alone or name in facts.languages
    }


def _own(facts: Facts, scores: Mapping[str, Any], found: Mapping[str, Any]) -> float | None:
    """The value of this model's seed."""
    if facts.tuned is None or facts.tuned.seed not in scores["seeds"]:
        return None
    return float(found["values"][scores["seeds"].index(facts.tuned.seed)])


def _mean_or(name: str) -> str:
    return "mean" if name == "all" else escaped(name)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _perplexity(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if value < 1e8 else f"{value:.2e}"
