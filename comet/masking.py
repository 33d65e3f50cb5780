"""Which tokens are hidden from both models, and how: rows of token ids, padded and masked as arrays.

Masking follows BERT (Devlin et al., 2019): of the chosen tokens 80 % become the mask token, 10 % a random piece, 10 %
stay. The choice is drawn from the seed and from what the rows are numbered by, and from nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100


@dataclass(frozen=True)
class MaskedRows:
    """Sequences side by side.

    Attributes:
        input_ids: `[B, S]` int32, masked, padded to the longest.
        labels: `[B, S]` int32, the original id where a token was chosen, −100 elsewhere.
        lengths: `[B]` int64, tokens of each row.
        languages: `[B]` int64, the language of each row.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    languages: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def every(self, step: int, first: int) -> "MaskedRows":
        """Rows `first`, `first + step`, ..., no wider than the longest of them."""
        lengths = self.lengths[first::step]
        width = int(lengths.max())
        return MaskedRows(
            self.input_ids[first::step, :width],
            self.labels[first::step, :width],
            lengths,
            self.languages[first::step],
        )


@dataclass(frozen=True)
class TokenMasking:
    """What masking needs of a tokenizer and a recipe.

    Attributes:
        probability: share of ordinary tokens chosen; 0 leaves the text as it is.
        seed: of the choice.
        mask: id of the mask token.
        padding: id of the padding token.
        special: ids that are never chosen.
        vocabulary: number of pieces that a random one is drawn from.
    """

    probability: float
    seed: int
    mask: int
    padding: int
    special: tuple[int, ...]
    vocabulary: int

    def rows(
        self, sequences: Sequence[Sequence[int]], languages: Sequence[int], number: Sequence[int]
    ) -> MaskedRows:
        """Pad and mask token ids, special tokens included.

        Args:
            sequences: token ids of each row.
            languages: of each row.
            number: what tells these rows from others; the choice of tokens follows from it.
        """
        lengths = np.array([len(ids) for ids in sequences])
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(real.shape, self.padding, dtype=np.int32)
        ids[real] = np.concatenate([np.asarray(one, dtype=np.int32) for one in sequences])
        chosen = self._choose(ids, real, number)
        return MaskedRows(
            self._hide(ids, chosen, number),
            np.where(chosen, ids, np.int32(IGNORED_LABEL)),
            lengths,
            np.asarray(languages, dtype=np.int64),
        )

    def _choose(self, ids: np.ndarray, real: np.ndarray, number: Sequence[int]) -> np.ndarray:
        draw = np.random.default_rng([self.seed, *number, 0]).random(ids.shape)
        special = np.isin(ids, self.special)
        return np.asarray((draw < self.probability) & real & ~special)

    def _hide(self, ids: np.ndarray, chosen: np.ndarray, number: Sequence[int]) -> np.ndarray:
        random = np.random.default_rng([self.seed, *number, 1])
        fate = random.random(ids.shape)
        piece = random.integers(self.vocabulary, size=ids.shape, dtype=np.int32)
        hidden = np.where(chosen & (fate < 0.8), np.int32(self.mask), ids)
        return np.where(chosen & (fate >= 0.9), piece, hidden)
