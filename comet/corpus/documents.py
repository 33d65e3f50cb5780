"""What a document is, how languages are named, and which documents are held out."""

import hashlib
import unicodedata
from dataclasses import dataclass

# ISO 639-1 codes (as MADLAD-400 names its folders) to ISO 639-3 (as reports name languages).
_THREE_LETTERS = {
    "af": "afr", "am": "amh", "ar": "ara", "en": "eng", "fr": "fra", "ha": "hau", "ig": "ibo",
    "lg": "lug", "mg": "mlg", "ny": "nya", "om": "orm", "pt": "por", "rn": "run", "rw": "kin",
    "sn": "sna", "so": "som", "st": "sot", "sw": "swa", "ti": "tir", "tn": "tsn", "ts": "tso",
    "tw": "twi", "wo": "wol", "xh": "xho", "yo": "yor", "zu": "zul",
}  # fmt: skip
_TWO_LETTERS = {three: two for two, three in _THREE_LETTERS.items()}
_WITHOUT_TWO_LETTERS = ("arq", "ary", "ful", "pcm")
UNDETERMINED = "und"
HELD_OUT_ONE_IN = 50


@dataclass(frozen=True)
class Document:
    """One text and the language it is written in, as a three-letter code."""

    text: str
    language: str


def language_code(name: str) -> str:
    """Return the three-letter code of a two- or three-letter one; any other name as it is."""
    return _THREE_LETTERS.get(name.lower(), name.lower())


def two_letter_code(name: str) -> str:
    """Return the two-letter code of a language, or the name where it has none."""
    return _TWO_LETTERS.get(name.lower(), name.lower())


def is_language(name: str) -> bool:
    """Whether a folder's name is one of the language codes known here."""
    code = language_code(name)
    return code in _TWO_LETTERS or code in _WITHOUT_TWO_LETTERS or code == UNDETERMINED


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
