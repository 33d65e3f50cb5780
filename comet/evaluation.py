"""What fine-tuned models say to a split, once, and the scores that follow from it.

RUN/predictions/SPLIT/seed-N.jsonl   every answer
RUN/predictions/SPLIT/record.json    which weights answered which examples, and a checksum of the answers: what was
                                     asked before is not asked again
RUN/scores-SPLIT.json                see `scores.py`
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comet.card import refresh
from comet.durable import write_json
from comet.onnx_encoder import load_encoder
from comet.predictions import PredictedExample, read_predictions, write_predictions
from comet.predictions import fingerprint as predictions_fingerprint
from comet.processes import on_main, say, this_process
from comet.scores import System, summary
from comet.task_batches import WORDS_VERSION
from comet.task_predict import SplitPredictor, tfidf_answers
from comet.tasks import Example, Task, TaskData, TaskRecipe, open_task
from comet.tasks.overlap import Texts, hashes, kept, rows_of
from comet.tasks.task import SPLITS, problem_table
from comet.tfidf import TfidfModel, is_tfidf
from comet.tuned_runs import TunedSystem, recipe_of, system_of_run, weights_fingerprint

RECORD = "record.json"
_RUN_ABOVE = 3  # levels: RUN/seed-0/hau/model
Runs = dict[int, list[PredictedExample]]


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    task: TaskRecipe | None = None,
    unseen: Sequence[str] = (),
    teacher: Path | None = None,
    floor: Path | None = None,
    output: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Measure every seed of a fine-tuning run.

    Args:
        run: its folder.
        split: "dev" or "test".
        task: the data; None for that of the run.
        unseen: codes of languages it was not trained on, measured too; models of one language each are not.
        teacher: a fine-tuning run that it is compared with; measured first where it was not yet.
        floor: another, the least it should do better than.
        output: where predictions and scores go; None for the run's folder.
        name: what it is called in tables; None for its folder's.

    Returns:
        What scores-SPLIT.json holds.

    Raises:
        ValueError: one of the folders holds no such run, or the data cannot be had.
    """
    system = system_of_run(run, name=name)
    data = task or recipe_of(run).task
    return evaluate_system(
        system, data, output or run, split=split, unseen=unseen, teacher=teacher, floor=floor
    )


def evaluate_system(
    system: TunedSystem,
    task: TaskRecipe,
    output: Path,
    *,
    split: str = "test",
    unseen: Sequence[str] = (),
    teacher: Path | None = None,
    floor: Path | None = None,
) -> dict[str, Any]:
    """Measure models on a task's data; see `evaluate_run`."""
    data, problems = _open(system, task, split, unseen)
    for line in problem_table(problems):
        say(line)
    runs = ask(system, data, output, split)
    compared = {
        flag: _compared(folder, data.task, task, split, flag)
        for flag, folder in (("--teacher", teacher), ("--floor", floor))
        if folder is not None
    }
    texts = on_main(lambda: _texts(system, task, split))
    if texts is None:
        say("overlap  not counted: neither the run's texts.json nor the train split is at hand")
    found = on_main(
        lambda: summary(
            data.task,
            runs,
            system=system.name,
            split=split,
            data=str(task.data),
            fingerprint=data.fingerprint,
            trained_on=system.languages,
            size=system.size,
            problems=problems,
            overlap=None if texts is None else _overlap(system, data, texts),
            teacher=compared.get("--teacher"),
            floor=compared.get("--floor"),
        )
    )
    on_main(lambda: write_json(output / f"scores-{split}.json", found))
    on_main(lambda: refresh(system.cards, output))
    return found


def ask(system: TunedSystem, data: TaskData, output: Path, split: str) -> Runs:
    """The answers of every seed; what the same weights said to the same examples before is taken.

    Args:
        system: the models.
        data: what they are asked.
        output: where predictions/SPLIT is.
        split: of the data.
    """
    folder = output / "predictions" / split
    wanted = {language: fingerprint(examples) for language, examples in data.splits.items()}
    asker = _Asker(system, data)
    return {
        seed: _of_seed(asker, seed, wanted, folder / f"seed-{seed}.jsonl") for seed in system.seeds
    }


def _of_seed(
    asker: "_Asker", seed: int, wanted: Mapping[str, str], file: Path
) -> list[PredictedExample]:
    """The answers of one seed; what the file holds of other languages stays there."""
    known, record = on_main(lambda: _known(file))
    now = {
        language: {"model": asker.weights_of(seed, language), "examples": examples}
        for language, examples in wanted.items()
    }
    answers = {language: [one for one in known if one.language == language] for language in now}
    missing = [
        language
        for language in now
        if record.get(language) != _recorded(now[language], answers[language])
    ]
    kept = [language for language in now if language not in missing]
    if kept:
        say(f"seed {seed}: {', '.join(kept)} asked before, taken from {file}")
    answers |= asker.ask(seed, missing)
    found = [one for language in now for one in answers[language]]
    if missing:
        rest = [one for one in known if one.language not in now]
        recorded = {name: _recorded(now[name], answers[name]) for name in now}
        on_main(lambda: _keep(file, [*found, *rest], {**record, **recorded}))
    return found


def _recorded(asked: Mapping[str, str], answers: Sequence[PredictedExample]) -> dict[str, str]:
    """What record.json says of a language."""
    return {**asked, "answers": predictions_fingerprint(answers)}


class _Asker:
    """Asks a system's models, each loaded once for all its languages and hashed once."""

    def __init__(self, system: TunedSystem, data: TaskData) -> None:
        self._system = system
        self._data = data
        self._hashes: dict[Path, str] = {}

    def weights_of(self, seed: int, language: str) -> str:
        """The fingerprint of the model that reads a language."""
        model = self._system.model_of(seed, language)
        if model not in self._hashes:
            self._hashes[model] = on_main(lambda: weights_fingerprint(model))
        return self._hashes[model]

    def ask(self, seed: int, languages: Sequence[str]) -> dict[str, list[PredictedExample]]:
        """The answers by language."""
        models: dict[Path, list[str]] = {}
        for language in languages:
            models.setdefault(self._system.model_of(seed, language), []).append(language)
        return {
            language: answers
            for model, its in models.items()
            for language, answers in _answers(model, only(self._data, its)).items()
        }


def only(data: TaskData, languages: Sequence[str]) -> TaskData:
    """A split with some of its languages."""
    return replace(data, splits={language: data.splits[language] for language in languages})


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of a language's examples, and of how words become tokens: answers to other tokens are not kept."""
    digest = hashlib.sha256()
    for one in examples:
        if not isinstance(one.text, str):
            digest.update(WORDS_VERSION)
        digest.update(json.dumps([one.row, one.label, one.text]).encode())
    return digest.hexdigest()


def _answers(model: Path, data: TaskData) -> dict[str, list[PredictedExample]]:
    if is_tfidf(model):
        answers = tfidf_answers(TfidfModel.load(model), data.examples)
    else:
        loaded = load_encoder(model)
        predictor = SplitPredictor(
            data,
            loaded.tokenizer,
            loaded.card.max_length,
            this_process().device,
            contextlib.nullcontext,
        )
        answers = predictor(loaded.model.to(this_process().device))
    return {
        language: [one for one in answers if one.language == language]
        for language in data.languages
    }


def _open(
    system: TunedSystem, task: TaskRecipe, split: str, unseen: Sequence[str]
) -> tuple[TaskData, list[Any]]:
    """The split in the languages of the system, and in others; the fingerprint is of the former alone."""
    labels = system.task.labels
    ours = system.languages if task.languages is None else task.languages
    data = on_main(lambda: open_task(task, split, ours, labels=labels))
    extra = [language for language in unseen if language not in data.splits]
    if extra and not system.is_joint:
        say(f"{system.name} has a model for each language: {', '.join(extra)} left out")
        extra = []
    if not extra:
        return data, list(data.problems)
    more = on_main(lambda: open_task(task, split, extra, labels=labels))
    return replace(data, splits={**data.splits, **more.splits}), [*data.problems, *more.problems]


def _texts(system: TunedSystem, task: TaskRecipe, split: str) -> Texts | None:
    """Hashes of what a system was trained on and chosen by, as its run kept them or as the data has them now."""
    others = SPLITS[: SPLITS.index(split)]
    folders = [folder for found in system.seeds.values() for folder in found]
    for above in folders[0].absolute().parents[:_RUN_ABOVE]:
        known = kept(above)
        if known is not None:
            return {other: known[other] for other in others if other in known}
    try:
        labels = system.task.labels
        return hashes(
            {other: open_task(task, other, system.languages, labels=labels) for other in others}
        )
    except (ValueError, OSError):
        return None


def _overlap(system: TunedSystem, data: TaskData, texts: Texts) -> dict[str, dict[str, list[int]]]:
    """Language → split → the rows whose texts that split has in what the language's model read."""
    return {
        language: {
            other: rows_of(
                examples,
                {
                    one
                    for name, its in by_language.items()
                    if system.is_joint or name == language
                    for one in its
                },
            )
            for other, by_language in texts.items()
        }
        for language, examples in data.splits.items()
    }


def _compared(run: Path, task: Task, data: TaskRecipe, split: str, flag: str) -> System:
    """A teacher or a floor on the same examples, in the languages that it knows."""
    system = system_of_run(run, flag=flag)
    if system.task.labels != task.labels:
        raise ValueError(
            f"{flag}: {run} tells {', '.join(system.task.labels)} apart, the task has {', '.join(task.labels)}"
        )
    theirs, _ = _open(system, data, split, ())
    return System(system.name, ask(system, theirs, run, split))


def _known(file: Path) -> tuple[list[PredictedExample], dict[str, Any]]:
    """What was asked before: the answers, and by which weights to which examples."""
    if not file.is_file():
        return [], {}
    try:
        return read_predictions(file), _record_of(file).get(file.stem, {})
    except (ValueError, UnicodeDecodeError):  # damaged: asked again
        return [], {}


def _record_of(file: Path) -> dict[str, Any]:
    """record.json next to a file of answers; empty where there is none that can be read."""
    try:
        found = json.loads(file.with_name(RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    known = found if isinstance(found, dict) else {}
    return {name: one for name, one in known.items() if isinstance(one, dict)}


def _keep(file: Path, answers: Sequence[PredictedExample], now: Mapping[str, Any]) -> None:
    record = file.with_name(RECORD)
    everything = _record_of(file)
    everything.pop(file.stem, None)
    if record.is_file():  # a record must never speak of answers that are not there
        write_json(record, everything)
    write_predictions(file, answers)
    write_json(record, {**everything, file.stem: dict(now)})


def score_table(scores: Mapping[str, Any]) -> str:
    """Scores as lines: per language and mean, beside floor and teacher."""
    measure = scores["measure"]
    floor, retention = scores["floor"], scores["retention"]
    names = [
        measure,
        *(
            name
            for name in scores["languages"][next(iter(scores["languages"]))]
            if name in ("macro_f1", "accuracy", "precision", "recall")
        ),
    ]
    overlapping = any(
        (found.get("overlap") or {}).get("any") for found in scores["languages"].values()
    )
    count = len(scores["seeds"])
    head = f"{scores['system']}, {scores['split']}, {count} seed{'s' * (count > 1)}, %"
    lines = [
        head,
        f"{'':12}{'examples':>9}  {measure:<26}"
        + "".join(f"{name:>11}" for name in names[1:])
        + ("      floor" if floor else "")
        + (f"{'overlap':>11}{'without':>11}" if overlapping else ""),
    ]

    def line(
        label: str,
        found: Mapping[str, Any],
        count: str = "",
        least: Any = None,
        overlap: int | None = None,
        rest: Mapping[str, Any] | None = None,
    ) -> str:
        cells = "".join(f"{100 * found[name]['mean']:11.2f}" for name in names[1:])
        floored = "" if floor is None else (f"{100 * least['mean']:11.2f}" if least else f"{'':11}")
        if overlapping:
            without = "–" if rest is None else f"{100 * rest[measure]['mean']:.2f}"
            floored += f"{'' if overlap is None else f'{overlap:,}':>11}{without:>11}"
        return (
            f"{label:12}{count:>9}  {_with_interval(found[measure]):<26}{cells}{floored}".rstrip()
        )

    for language, found in scores["languages"].items():
        label = language if found["trained"] else f"{language} (unseen)"
        least = floor["languages"].get(language) if floor else None
        its = found.get("overlap") or {}
        of = f"{found['examples']:,}"
        lines.append(line(label, found, of, least, its.get("any"), its.get("without")))
    if scores["mean"] is not None:
        least = floor["mean"] if floor else None
        lines.append(
            line("mean", scores["mean"], least=least, rest=scores.get("mean_without_overlap"))
        )
    if scores["unseen_mean"] is not None:
        lines.append(line("unseen mean", scores["unseen_mean"]))
    if overlapping:
        others = " or ".join(SPLITS[: SPLITS.index(scores["split"])])
        lines.append(f"overlap: texts that stand in {others} too; without: {measure} of the others")
    if retention is not None:
        lines.append(f"of the teacher {retention['teacher']}: {_with_interval(retention['raw'])}")
        if retention["above_floor"] is not None:
            lines.append(f"above the floor: {_with_interval(retention['above_floor'])}")
    return "\n".join(lines)


def _with_interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "not defined"
    deviation = "" if found.get("std") is None else f" ± {100 * found['std']:.2f}"
    interval = (
        "" if found["low"] is None else f" [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
    )
    return f"{100 * found['mean']:.2f}{deviation}{interval}"
