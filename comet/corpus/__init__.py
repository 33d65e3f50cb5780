"""Where text comes from: local files, MADLAD-400 on the hub, or the built-in toy corpus.

A `Corpus` gives endless training streams, mixed over languages by temperature, and per language the
documents held out for evaluation. Which those are is decided by a hash of the text, so that a teacher
adapted on a corpus and a student distilled on it never train on each other's evaluation documents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from comet.corpus.documents import (
    Document,
    find_language,
    language_code,
    text_hash,
    two_letter_code,
)
from comet.corpus.hub import MADLAD_400, MADLAD_LANGUAGES, madlad_shards
from comet.corpus.lines import documents, hashed, local_shard
from comet.corpus.local import find_files
from comet.corpus.memory import InMemory
from comet.corpus.mixing import Source, TextStream, probabilities
from comet.corpus.problems import Problems
from comet.corpus.streamed import Streamed
from comet.names import path_component
from comet.toy import LANGUAGES as TOY_LANGUAGES
from comet.toy import toy_sentences

__all__ = ["Corpus", "Document", "Problems", "TextStream", "language_code", "open_corpus"]

_TOY_SENTENCES = 8000  # of each language

Opener = Callable[[], Source]


class Corpus:
    """Training and evaluation text in one or more languages.

    Args:
        sources: one per language.
        temperature: τ of p ∝ n^(1/τ), see `comet.corpus.mixing`.
        seed: decides the order of the training streams, and nothing else.
        held_out_per_language: how many documents evaluation reads at most.
        streams: how many streams share the training text.
        problems: what of it could not be read, so far.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        temperature: float,
        seed: int,
        held_out_per_language: int,
        streams: int,
        problems: Problems,
    ) -> None:
        self.streams = streams
        self.problems = problems
        self._sources = sorted(sources, key=lambda source: source.language)
        self._temperature = temperature
        self._seed = seed
        self._held_out_per_language = held_out_per_language
        self._fingerprint = self._joined(lambda source: source.fingerprint())
        self._earlier = self._joined(lambda source: source.earlier_fingerprint())

    @property
    def languages(self) -> tuple[str, ...]:
        """Three-letter codes, in alphabetical order."""
        return tuple(source.language for source in self._sources)

    @property
    def counts(self) -> dict[str, int | None]:
        """Documents per language, held-out ones included; None where they are streamed."""
        return {source.language: source.count for source in self._sources}

    @property
    def estimates(self) -> dict[str, float]:
        """Documents to train on per language, estimated from the files' sizes where they are streamed."""
        return {source.language: source.weight for source in self._sources}

    @property
    def probabilities(self) -> dict[str, float]:
        """How often each language is drawn."""
        return probabilities(self._sources, self._temperature)

    def training_stream(self, stream: int = 0) -> TextStream:
        """Return a new reader of one of the training streams, at its start."""
        return TextStream(
            self._sources,
            self._temperature,
            self._seed,
            (self._fingerprint, self._earlier),
            stream,
            self.streams,
        )

    def training_texts(self, language: str, most: int) -> Iterator[str]:
        """Yield the training documents of a language once, in an order of their own, `most` of them at the most."""
        source = next(source for source in self._sources if source.language == language)
        cursor = source.cursor(self._seed, 0, 1)
        for _ in range(most):
            text = cursor.next()
            if cursor.state_dict()["epoch"] > 0:
                return
            yield text

    def held_out(self) -> dict[str, list[str]]:
        """Return the documents to evaluate on; no training stream of any seed gives one of them."""
        limit = self._held_out_per_language
        found = {source.language: source.held_out(limit) for source in self._sources}
        self.problems.report()
        return found

    def fingerprint(self) -> str:
        """Return a SHA-256 of the texts; where they are streamed, of names, sizes and content of the files.

        Of large files it reads blocks alone: `times` tells whether they were written meanwhile.
        """
        return self._fingerprint

    def is_of(self, fingerprint: str) -> bool:
        """Whether a saved fingerprint is that of this text, saved by this version or an earlier one."""
        return fingerprint in (self._fingerprint, self._earlier)

    def times(self) -> str:
        """Return a hash of the times of those files that were not read whole for `fingerprint`; empty without any."""
        if not any(source.times() for source in self._sources):
            return ""
        return self._joined(lambda source: source.times())

    def _joined(self, line_of: Callable[[Source], str]) -> str:
        lines = (f"{source.language} {line_of(source)}" for source in self._sources)
        return text_hash("\n".join(lines))


def open_corpus(
    paths: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    temperature: float,
    seed: int,
    held_out_per_language: int,
    streams: int = 1,
    shuffle_buffer: int = 10_000,
    in_memory: int = 1024,
    strict: bool = False,
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
        streams: how many streams share the training text.
        shuffle_buffer: documents of a language that are shuffled together where they are streamed.
        in_memory: MiB of local files, as they lie on disk, above which they are streamed.
        strict: end at what cannot be read instead of counting and skipping it.
        madlad_base: a folder or URL laid out like MADLAD-400's `data`, in its place.

    Raises:
        ValueError: something is missing, damaged or contradictory; the message says what to do.
    """
    _check_numbers(temperature, seed, held_out_per_language)
    if not paths:
        raise ValueError("corpus: got no path, expected a file, a folder, toy or madlad400")
    problems = Problems(strict=strict)
    files: dict[Path, str] = {}
    openers: dict[str, list[Opener]] = defaultdict(list)
    for path in paths:
        if path == "toy":
            for language in TOY_LANGUAGES:
                openers[language].append(partial(_toy, language))
        elif path.partition(":")[0].partition("@")[0] == "madlad400":
            for code, base in _madlad_folders(path, madlad_base):
                opener = partial(_madlad, code, base, shuffle_buffer, problems)
                openers[language_code(code)].append(opener)
        else:
            files |= find_files(Path(path))
    wanted = _wanted(languages, set(openers) | set(files.values()))
    by_language = {name: [file for file in files if files[file] == name] for name in wanted}
    size = sum(file.stat().st_size for chosen in by_language.values() for file in chosen)
    held = size <= in_memory << 20
    for language, chosen in by_language.items():
        if chosen:
            block = None if held else shuffle_buffer
            openers[language].append(partial(_local, language, chosen, block, problems))
    sources = [_only(language, openers[language])() for language in wanted]
    problems.report()
    return Corpus(
        sources,
        temperature=temperature,
        seed=seed,
        held_out_per_language=held_out_per_language,
        streams=streams,
        problems=problems,
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


def _madlad(code: str, base: str, block: int, problems: Problems) -> Source:
    return Streamed(language_code(code), madlad_shards(code, base), block, problems)


def _local(language: str, files: Sequence[Path], block: int | None, problems: Problems) -> Source:
    """Files in memory, or streamed in blocks."""
    shards = [local_shard(str(file)) for file in files]
    if block is not None:
        return Streamed(language, hashed(shards), block, problems)
    texts = [line.text for shard in shards for line in documents(shard, problems)]
    problem = problems.example(shard.address for shard in shards)
    if not texts:
        raise ValueError(
            f"corpus: nothing to read in {', '.join(map(str, files[:3]))} ({problem}); remove or repair it"
        )
    try:
        return InMemory(language, texts)
    except ValueError as error:
        why = "" if problem is None else f"; not all of its text can be read: {problem}"
        raise ValueError(f"{error}{why}") from error


def _madlad_folders(path: str, base: str | None) -> list[tuple[str, str]]:
    """Split "madlad400[@REVISION][:ha,ig,...]" into languages, each with the folder it is in."""
    name, colon, listed = path.partition(":")
    revision = name.partition("@")[2] or "main"
    codes = (
        # a name with a script or region is a folder's there
        [
            code if "_" in code else two_letter_code(code)
            for code in map(str.strip, listed.split(","))
        ]
        if colon
        else MADLAD_LANGUAGES
    )
    if not all(codes):
        raise ValueError(
            f"corpus: got {path!r}, expected languages after the colon: madlad400:ha,ig"
        )
    return [
        (path_component(code, f"corpus: {path}"), base or f"{MADLAD_400}@{revision}/data")
        for code in dict.fromkeys(codes)
    ]


def _wanted(languages: Sequence[str] | None, offered: set[str]) -> list[str]:
    """The languages to open, in alphabetical order: all, or the ones asked for."""
    if languages is None:
        return sorted(offered)
    wanted = {find_language(one, offered) or language_code(one) for one in languages}
    missing = sorted(wanted - offered)
    if missing or not wanted:
        raise ValueError(
            f"languages: got {', '.join(missing) or 'none'}, expected of {', '.join(sorted(offered))}"
        )
    return sorted(wanted)


def _only(language: str, openers: Sequence[Opener]) -> Opener:
    """One language comes from one kind of source: files, toy or MADLAD-400."""
    if len(openers) > 1:
        raise ValueError(
            f"corpus: {language} comes from {len(openers)} sources of different kinds or is named "
            "twice; give each language as files, toy or madlad400, and choose with madlad400:ha,ig"
        )
    return openers[0]
