"""Attention maps of a teacher and its student for one sentence of each language, as the objective compares them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

import comet_kernels
from comet.corpus.documents import find_language
from comet.report.reading import Run, read_json
from comet.students import load_masked_lm, load_tokenizer
from comet.tap import TappedEncoder
from comet.teacher_cache import INDEX
from comet.toy import LANGUAGES as TOY_LANGUAGES
from comet.toy import toy_sentences

TOKENS = 18  # of a sentence, at most: more are not readable at phone width


@dataclass(frozen=True)
class Pair:
    """What teacher and student attend to in one sentence.

    Attributes:
        language: of the sentence.
        text: the sentence.
        tokens: S pieces; what is longer than that is cut.
        teacher: `[S, S]`, rows sum to 1.
        student: `[S, S]` likewise.
        error: mean squared difference of the two.
    """

    language: str
    text: str
    tokens: list[str]
    teacher: list[list[float]]
    student: list[list[float]]
    error: float


@dataclass(frozen=True)
class Maps:
    """Maps of one run.

    Attributes:
        pairs: one for each language that has a sentence.
        layers: of teacher and student, counted from 1, with how many there are.
        missing: languages without a sentence.
    """

    pairs: list[Pair]
    layers: tuple[tuple[int, int], tuple[int, int]]
    missing: list[str]


def attention_maps(run: Run, languages: list[str], sentences: Mapping[str, str]) -> Maps:
    """Read one sentence of each language with the teacher and the student of a distillation run.

    Args:
        run: a distillation.
        languages: which.
        sentences: the user's, by language; the others are from the toy corpus.

    Raises:
        ValueError: a model is not there, or cannot be read.
    """
    teacher_name = _teacher(run)
    if not teacher_name:
        raise ValueError("the run does not name its teacher")
    folder = run.folder / "student"
    if not folder.is_dir():
        raise ValueError("it has no student yet")
    if not Path(teacher_name).is_dir() and Path(teacher_name).is_absolute():
        raise ValueError(f"its teacher is no longer in {teacher_name}")
    revision = run.recipe["teacher"].get("revision")
    tokenizer = load_tokenizer(str(folder), flag="RUN")
    teacher = TappedEncoder(
        load_masked_lm(teacher_name, revision=revision, flag="RUN").eval(),
        run.recipe["teacher"].get("attention_layer", "last"),
    )
    student = TappedEncoder(
        load_masked_lm(str(folder), flag="RUN").eval(),
        run.recipe["student"].get("attention_layer", "last"),
    )
    pairs, missing = [], []
    for language in languages:
        text = sentences.get(language) or _sentence(language, tokenizer)
        if text is None:
            missing.append(language)
        else:
            pairs.append(_pair(language, text, tokenizer, teacher, student))
    layers = [(one.layer + 1, one.model.config.num_hidden_layers) for one in (teacher, student)]
    return Maps(pairs, (layers[0], layers[1]), missing)


def _teacher(run: Run) -> str | None:
    """Hub id or folder of the teacher, also of one that a run knew from a cache alone."""
    named = run.record.get("teacher") or run.recipe["teacher"].get("model")
    cache = run.record.get("teacher_cache") or run.recipe["teacher"].get("cache")
    if named is None and cache is not None and (Path(cache) / INDEX).is_file():
        named = read_json(Path(cache) / INDEX).get("teacher")
    return None if named is None else str(named)


def languages_of(run: Run) -> list[str]:
    """Languages a distillation was evaluated on or logged, in order."""
    found = dict.fromkeys(name for one in run.curves for name in _languages(one.evaluations))
    logged = (
        key.split("/")[1]
        for one in run.curves
        for line in one.metrics
        for key in line
        if "/" in key
    )
    return list(found | dict.fromkeys(logged))


def _languages(evaluations: list[dict[str, Any]]) -> Iterator[str]:
    for line in evaluations:
        yield from (key for key in line if key not in ("step", "all"))


def _sentence(language: str, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """A toy sentence that is read whole: the longest of some that fits, or the shortest."""
    toy = find_language(language, TOY_LANGUAGES)
    if toy is None:
        return None
    sizes = {text: len(tokenizer(text)["input_ids"]) for text in toy_sentences(toy, 40)}
    fitting = {text: size for text, size in sizes.items() if size <= TOKENS}
    if fitting:
        return max(fitting, key=lambda text: fitting[text])
    return min(sizes, key=lambda text: sizes[text])


@torch.no_grad()
def _pair(
    language: str,
    text: str,
    tokenizer: PreTrainedTokenizerFast,
    teacher: TappedEncoder,
    student: TappedEncoder,
) -> Pair:
    ids_BS = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")["input_ids"]
    maps = []
    for encoder in (teacher, student):
        tapped = encoder(ids_BS, None)
        maps.append(comet_kernels.mean_attention(tapped.query, tapped.key, scale=tapped.scale)[0])
    error = (maps[0] - maps[1]).square().mean().item()
    if not math.isfinite(error):
        raise ValueError(f"attention of {language} is not finite")
    return Pair(
        language,
        text,
        tokenizer.convert_ids_to_tokens(ids_BS[0].tolist()),
        maps[0].tolist(),
        maps[1].tolist(),
        error,
    )
