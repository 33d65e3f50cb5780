"""What a document is, how languages are named, and which documents are held out."""

import contextlib
import functools
import hashlib
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import iso639

# What runs have called a language since the first of them, by its ISO 639-1 code: folders and fingerprints hold it.
_THREE_LETTERS = {
    "af": "afr", "am": "amh", "ar": "ara", "en": "eng", "fr": "fra", "ha": "hau", "ig": "ibo",
    "lg": "lug", "mg": "mlg", "ny": "nya", "om": "orm", "pt": "por", "rn": "run", "rw": "kin",
    "sn": "sna", "so": "som", "st": "sot", "sw": "swa", "ti": "tir", "tn": "tsn", "ts": "tso",
    "tw": "twi", "wo": "wol", "xh": "xho", "yo": "yor", "zu": "zul",
}  # fmt: skip
_FOLDERS = {  # codes and names of languages that folders are called by for other reasons
    "all", "any", "api", "app", "bag", "bed", "bench", "big", "bin", "bit", "box", "cat", "com", "css",
    "csv", "dat", "day", "dev", "dir", "doc", "end", "era", "etc", "gen", "git", "hub", "ids", "job",
    "lab", "lex", "lib", "log", "low", "max", "may", "mid", "min", "mix", "mnt", "ner", "net", "new",
    "old", "one", "opt", "org", "out", "pos", "pre", "pub", "raw", "seg", "set", "src", "sub", "sum",
    "tag", "tmp", "top", "toy", "tsv", "tts", "two", "txt", "var", "war", "xml",
}  # fmt: skip
_SCRIPT_OR_REGION = re.compile(r"[_-]([a-z]{4}|[a-z]{2}|\d{3})$", re.IGNORECASE)  # hau_Latn, pt-BR
UNDETERMINED = "und"
HELD_OUT_ONE_IN = 50


@dataclass(frozen=True)
class Document:
    """One text and the language it is written in, as a three-letter code."""

    text: str
    language: str


def language_code(name: str) -> str:
    """What a run calls a language: the three-letter code of some with two letters, any other name as it is."""
    return _THREE_LETTERS.get(name.lower(), name.lower())


def two_letter_code(name: str) -> str:
    """The two-letter code of a language, else its three-letter code, or the name where it is not known."""
    language = _known(name)
    return name.lower() if language is None else language.part1 or language.part3


def is_language(name: str) -> bool:
    """Whether a folder's name says which language its text is in: `hau`, `ha`, `hau_Latn`, `Hausa`."""
    if language_code(name) in (UNDETERMINED, *_THREE_LETTERS.values()):
        return True
    plain = _SCRIPT_OR_REGION.sub("", name)
    written = name[len(plain) + 1 :]
    if plain.lower() in _FOLDERS or (len(written) == 4 and written != written.title()):
        return False
    return _known(name) is not None


def find_language(name: str, names: Collection[str]) -> str | None:
    """Which of several names of languages is meant: the same, or else the only one of the same language.

    Args:
        name: as a user or a file has it.
        names: of `language_code`.
    """
    code = language_code(name)
    if code in names:
        return code
    language = _known(name) if names else None
    if language is None:
        return None
    same = [one for one in names if _known(one) == language]
    return same[0] if len(same) == 1 else None


def language_named(name: str, wanted: Collection[str] | None) -> str:
    """What a run calls the language of a row: the name that it is wanted by, else its own."""
    return find_language(name, wanted or ()) or language_code(name)


@functools.cache
def _known(name: str) -> "iso639.Language | None":
    """The language of an ISO 639 code or an English name, with a script or region or without."""
    import iso639  # takes a while

    name = name.strip()
    for one in (name, _SCRIPT_OR_REGION.sub("", name), f"{name.title()} (macrolanguage)"):
        with contextlib.suppress(iso639.LanguageNotFoundError):
            return iso639.Language.match(one, strict_case=False)
    return None


def composed(text: str) -> str:
    """Unicode normal form C, in which text is compared and counted: the same however its letters were typed."""
    return unicodedata.normalize("NFC", text)


def content_hash(text: str) -> str:
    """SHA-256 of a text as it is, the same on every machine."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text, the same on every machine and however its letters were typed."""
    return content_hash(composed(text))


def is_held_out(digest: str) -> bool:
    """Whether the text with this hash is kept for evaluation: one in fifty, decided by it alone.

    Neither the order nor the number of files changes the answer, and copies of a text share it.
    """
    return int(digest[:16], 16) % HELD_OUT_ONE_IN == 0
