"""What a masked loss is to be compared with: the entropies of pieces whose context is not looked at."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from comet.batches import tokenise
from comet.corpus import Corpus

DOCUMENTS = 1000  # of each language, on average


@dataclass(frozen=True)
class PieceEntropy:
    """Losses, in nats, of predicting a piece from its frequency alone, and from its frequency in the language."""

    single: float
    given_language: float

    def __str__(self) -> str:
        return f"single pieces {self.single:.2f}, given the language {self.given_language:.2f}"


def piece_entropy(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> PieceEntropy:
    """Entropy of single pieces in the training mixture, and the same when the language is known."""
    stream = corpus.training_stream()
    texts: dict[str, list[str]] = {}
    for _ in range(DOCUMENTS * len(corpus.languages)):
        document = next(stream)
        texts.setdefault(document.language, []).append(document.text)
    special = set(tokenizer.all_special_ids)
    counts = {
        language: Counter(
            piece
            for sequence in tokenise(tokenizer, some, max_length, cut=False)
            for piece in sequence
            if piece not in special
        )
        for language, some in texts.items()
    }
    total = sum(count.total() for count in counts.values())
    return PieceEntropy(
        single=_entropy(sum(counts.values(), Counter())),
        given_language=sum(_entropy(count) * count.total() / total for count in counts.values()),
    )


def _entropy(counts: Mapping[int, int]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())
