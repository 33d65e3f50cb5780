"""How well a tokenizer covers a language: where it does not, no training helps the student much.

A tokenizer that was trained on little text of a language cuts its words into many short pieces, or into pieces it does
not know at all; both lower what a model can learn of it (Rust et al., 2021, "How Good is Your Tokenizer?").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from comet.corpus.documents import composed


@dataclass(frozen=True)
class Coverage:
    """Tokenisation of some text.

    Attributes:
        unknown_rate: share of pieces that are the unknown one.
        pieces_per_word: pieces per word, words being what whitespace separates.
        characters_per_piece: characters (in normal form C), whitespace left out, per piece.
    """

    unknown_rate: float
    pieces_per_word: float
    characters_per_piece: float


def coverage(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Coverage:
    """Measure a tokenizer on texts, special tokens left out.

    Args:
        tokenizer: a fast tokenizer.
        texts: documents of one language, read to their ends.

    Raises:
        ValueError: there is no word in them.
    """
    words = [word for text in texts for word in text.split()]
    if not words:
        raise ValueError("texts: got no word, expected some text of the language")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    pieces = sum(len(one.ids) for one in encoded)
    unknown = sum(one.ids.count(tokenizer.unk_token_id) for one in encoded)
    return Coverage(
        unknown_rate=unknown / max(pieces, 1),
        pieces_per_word=pieces / len(words),
        characters_per_piece=sum(len(composed(word)) for word in words) / max(pieces, 1),
    )


def coverage_table(found: Mapping[str, Coverage]) -> list[str]:
    """A head and a line for each language."""
    head = f"{'':8} {'unknown':>8} {'pieces per word':>16} {'characters per piece':>21}"
    return [
        head,
        *(
            f"{language:8} {one.unknown_rate:8.2%} {one.pieces_per_word:16.2f} {one.characters_per_piece:21.2f}"
            for language, one in found.items()
        ),
    ]
