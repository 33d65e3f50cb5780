"""Where text comes from: local files, MADLAD-400 on the hub, or the built-in toy corpus.

A `Corpus` gives an endless training stream, mixed over languages by temperature, and per language the
documents held out for evaluation. Which those are is decided by a hash of the text, so that a teacher
adapted on a corpus and a student distilled on it never train on each other's evaluation documents.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from comet.corpus.documents import Document, language_code, text_hash, two_letter_code
from comet.corpus.hub import MADLAD_400, MADLAD_LANGUAGES, Streamed
from comet.corpus.local import find_files, read_files
from comet.corpus.mixing import InMemory, Source, TextStream
from comet.toy import LANGUAGES as TOY_LANGUAGES
from comet.toy import toy_sentences

__all__ = ["Corpus", "Document", "TextStream", "language_code", "open_corpus"]

_TOY_SENTENCES = 8000  # of each language

Opener = Callable[[], Source]


class Corpus:
    """Training and evaluation text in one or more languages.

    Args:
        sources: one per language.
        temperature: τ of p ∝ n^(1/τ), see `comet.corpus.mixing`.
        seed: decides the order of the training stream, and nothing else.
        held_out_per_language: how many documents evaluation reads at most.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        temperature: float,
        seed: int,
        held_out_per_language: int,
    ) -> None:
        self._sources = sorted(sources, key=lambda source: source.language)
        self._temperature = temperature
        self._seed = seed
        self._held_out_per_language = held_out_per_language

    @property
    def languages(self) -> tuple[str, ...]:
        """Three-letter codes, in alphabetical order."""
        return tuple(source.language for source in self._sources)

    @property
    def counts(self) -> dict[str, int | None]:
        """Documents per language, held-out ones included; None where they are streamed."""
        return {source.language: source.count for source in self._sources}

    def training_stream(self) -> TextStream:
        """Return a new training stream, at its start."""
        return TextStream(self._sources, self._temperature, self._seed, self.fingerprint())

    def held_out(self) -> dict[str, list[str]]:
        """Return the documents to evaluate on; no training stream of any seed gives one of them."""
        limit = self._held_out_per_language
        return {source.language: source.held_out(limit) for source in self._sources}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the texts (of the shards' addresses where they are streamed)."""
        lines = (f"{source.language} {source.fingerprint()}" for source in self._sources)
        return text_hash("\n".join(lines))


def open_corpus(
    paths: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    temperature: float,
    seed: int,
    held_out_per_language: int,
    madlad_base: str | None = None,
) -> Corpus:
    """Open a corpus.

    Args:
        paths: each a file (`.jsonl`, `.jsonl.gz`, `.txt`, `.txt.gz`), a folder of such files or of
            folders named by language, "toy", or "madlad400[@REVISION][:ha,ig,...]".
        languages: which languages to use, by two- or three-letter codes; None for all there are.
        temperature: τ of the mixture, above 0.
        seed: decides the order of the training stream.
        held_out_per_language: how many documents evaluation reads at most, above 0.
        madlad_base: a folder or URL laid out like MADLAD-400's `data`, in its place.

    Raises:
        ValueError: something is missing, damaged or contradictory; the message says what to do.
    """
    _check_numbers(temperature, seed, held_out_per_language)
    if not paths:
        raise ValueError("corpus: got no path, expected a file, a folder, toy or madlad400")
    files: dict[Path, str] = {}
    openers: dict[str, list[Opener]] = defaultdict(list)
    for path in paths:
        if path == "toy":
            for language in TOY_LANGUAGES:
                openers[language].append(partial(_toy, language))
        elif path.partition(":")[0].partition("@")[0] == "madlad400":
            for code, base in _madlad_folders(path, madlad_base):
                openers[language_code(code)].append(partial(Streamed, code, base))
        else:
            files |= find_files(Path(path))
    for language in dict.fromkeys(files.values()):
        chosen = [file for file, its_language in files.items() if its_language == language]
        openers[language].append(partial(_local, language, chosen))
    return Corpus(
        [_only(language, openers[language])() for language in _wanted(languages, openers)],
        temperature=temperature,
        seed=seed,
        held_out_per_language=held_out_per_language,
    )


def _check_numbers(temperature: float, seed: int, held_out_per_language: int) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected a finite number above 0")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected 0 or more")
    if held_out_per_language < 1:
        raise ValueError(f"held_out_per_language: got {held_out_per_language}, expected 1 or more")


def _toy(language: str) -> Source:
    return InMemory(language, toy_sentences(language, _TOY_SENTENCES))


def _local(language: str, files: Sequence[Path]) -> Source:
    return InMemory(language, read_files(files))


def _madlad_folders(path: str, base: str | None) -> list[tuple[str, str]]:
    """Split "madlad400[@REVISION][:ha,ig,...]" into languages, each with the folder it is in."""
    name, colon, listed = path.partition(":")
    revision = name.partition("@")[2] or "main"
    codes = (
        [two_letter_code(code.strip()) for code in listed.split(",")] if colon else MADLAD_LANGUAGES
    )
    if not all(codes):
        raise ValueError(
            f"corpus: got {path!r}, expected languages after the colon: madlad400:ha,ig"
        )
    return [(code, base or f"{MADLAD_400}@{revision}/data") for code in dict.fromkeys(codes)]


def _wanted(languages: Sequence[str] | None, offered: dict[str, list[Opener]]) -> list[str]:
    """The languages to open: all, or the ones asked for."""
    if languages is None:
        return list(offered)
    wanted = list(dict.fromkeys(language_code(language) for language in languages))
    missing = [language for language in wanted if language not in offered]
    if missing or not wanted:
        raise ValueError(
            f"languages: got {', '.join(missing) or 'none'}, expected of {', '.join(sorted(offered))}"
        )
    return wanted


def _only(language: str, openers: Sequence[Opener]) -> Opener:
    """One language comes from one kind of source: files, toy or MADLAD-400."""
    if len(openers) > 1:
        raise ValueError(
            f"corpus: {language} comes from {len(openers)} sources of different kinds or is named "
            "twice; give each language as files, toy or madlad400, and choose with madlad400:ha,ig"
        )
    return openers[0]
