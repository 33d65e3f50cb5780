"""Batches of a step: every process takes its share of the streams, cut into the pieces that it reads one after another.

The sequences of a step and their masking depend on the recipe alone; processes and accumulation decide only how they
are sliced. Each slice takes every n-th row of a batch that is sorted by length, so that all have as much to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from comet.batch import Batch
from comet.corpus import Corpus, Problems, open_corpus
from comet.masking import IGNORED_LABEL, MaskedRows, TokenMasking
from comet.pools import BatchLimits, Pool, PoolMaker, PoolPlace, tokenise
from comet.recipe import CorpusRecipe
from comet.workers import BackgroundPools

__all__ = [
    "IGNORED_LABEL",
    "Masking",
    "StepBatches",
    "evaluation_batches",
    "held_out",
    "open_text",
    "tokenise",
]


def open_text(recipe: CorpusRecipe, seed: int) -> Corpus:
    """The corpus of a recipe."""
    return open_corpus(
        recipe.paths,
        languages=recipe.languages,
        temperature=recipe.sampling_temperature,
        seed=seed,
        held_out_per_language=recipe.held_out,
        streams=recipe.streams,
        shuffle_buffer=recipe.shuffle_buffer,
        in_memory=recipe.in_memory,
        strict=recipe.strict,
    )


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and hidden, and which of them the logits are matched on.

    Attributes:
        tokenizer: gives the mask, padding and special tokens.
        probability: share of ordinary tokens chosen; 0 leaves the text as it is.
        kd_tokens: `all` real tokens, or the `masked` (chosen) ones.
        seed: of the choice.
    """

    tokenizer: PreTrainedTokenizerFast
    probability: float
    kd_tokens: Literal["all", "masked"]
    seed: int

    @property
    def of_tokens(self) -> TokenMasking:
        """The part that needs no tokenizer."""
        return TokenMasking(
            self.probability,
            self.seed,
            mask=self.tokenizer.mask_token_id,
            padding=self.tokenizer.pad_token_id,
            special=tuple(self.tokenizer.all_special_ids),
            vocabulary=len(self.tokenizer),
        )

    def collate(self, sequences: Sequence[Sequence[int]], number: int, language: int = 0) -> Batch:
        """Pad and mask token ids, special tokens included, into batch `number` of one language."""
        languages = [language] * len(sequences)
        return self.batch(self.of_tokens.rows(sequences, languages, [number]))

    def batch(self, rows: MaskedRows) -> Batch:
        """Masked rows as the models read them."""
        real = np.arange(rows.input_ids.shape[1]) < rows.lengths[:, None]
        masked_positions = np.flatnonzero(rows.labels != IGNORED_LABEL)
        matched = np.flatnonzero(real) if self.kd_tokens == "all" else masked_positions
        return Batch(
            input_ids=_tensor(rows.input_ids),
            mask=None if real.all() else _tensor(real),
            kd_positions=_tensor(matched),
            masked_positions=_tensor(masked_positions),
            labels=_tensor(rows.labels),
            languages=_tensor(rows.languages),
            tokens=int(rows.lengths.sum()),
            squared_lengths=int((rows.lengths**2).sum()),
        )


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Of int64 or bool; where a GPU will read it, in memory that can be copied while the GPU works."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor if tensor.dtype == torch.bool else tensor.long()
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class StepBatches(Iterator[list[Batch]]):
    """Endless training steps, each the pieces that this process reads of it.

    Args:
        corpus: the text; its streams are shared among the processes.
        masking: how tokens are hidden and matched.
        batch_size: sequences per step, over all processes.
        batch_tokens: tokens per step, padding included, instead of `batch_size` sequences.
        max_length: tokens per sequence, special tokens included.
        accumulation: pieces that a process reads its share of a step in. Of several streams that one process reads,
            each is a piece at least.
        process: which of the processes this is.
        processes: how many there are.
        workers: background processes for each stream that this process reads; 0 makes batches in this one.
        text: where the text begins: the `text_state` of another, over the same corpus.

    Raises:
        ValueError: processes and streams do not divide each other, or a piece could be left without a sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        masking: Masking,
        *,
        batch_size: int,
        batch_tokens: int | None,
        max_length: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        text: Mapping[str, Any] | None = None,
    ) -> None:
        self._masking = masking
        streams = corpus.streams
        limits = _limits(batch_size, batch_tokens, max_length, streams)
        own, self._pieces, self._first, self._step = slices_of(
            streams, process, processes, accumulation
        )
        _require_rows(limits, self._step, streams)
        self._streams = {
            stream: _Stream(
                PoolMaker(
                    corpus, stream, masking.tokenizer.backend_tokenizer, masking.of_tokens, limits
                ),
                workers,
                corpus.problems,
                None if text is None else text[str(stream)],
            )
            for stream in own
        }

    def __next__(self) -> list[Batch]:
        """The pieces of the next step.

        Raises:
            ValueError: the text cannot be read, or a background process failed.
        """
        return [
            self._masking.batch(rows.every(self._step, first))
            for rows in [stream.next() for stream in self._streams.values()]
            for first in range(self._first, self._step, self._step // self._pieces)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last step given, as JSON, of the streams this process reads."""
        states = {str(number): stream.state_dict() for number, stream in self._streams.items()}
        return {"streams": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position: the same batches follow.

        Raises:
            ValueError: it was saved with other streams, or over another corpus.
        """
        missing = [number for number in self._streams if str(number) not in state["streams"]]
        if missing:
            raise ValueError(
                f"corpus.streams: the saved position has {len(state['streams'])} streams, not number "
                f"{missing[0]}; resume with as many streams as the run began with"
            )
        for number, stream in self._streams.items():
            stream.load_state_dict(state["streams"][str(number)])

    def text_state(self) -> dict[str, Any]:
        """Where the text goes on behind what was read for the last step: what `text` of another begins from."""
        return {str(number): stream.following() for number, stream in self._streams.items()}

    def close(self) -> None:
        """End the background processes; the position stays."""
        for stream in self._streams.values():
            stream.close()


class _Stream:
    """One stream's batches, before they are sliced."""

    def __init__(
        self, maker: PoolMaker, workers: int, problems: Problems, text: Mapping[str, Any] | None
    ) -> None:
        self._maker = maker
        self._workers = workers
        self._problems = problems
        self._place = maker.start() if text is None else PoolPlace(0, text)
        self._taken = 0
        self._pool: Pool | None = None
        self._pools: Iterator[Pool] | None = None

    def next(self) -> MaskedRows:
        pool = self._pool or self._receive()
        if self._taken == len(pool.batches):
            pool = self._receive()
            self._place, self._taken = pool.place, 0
        self._taken += 1
        return pool.batches[self._taken - 1]

    def _receive(self) -> Pool:
        if self._pools is None:
            self._pools = (
                BackgroundPools(self._maker, self._place, self._workers)
                if self._workers
                else self._maker.pools(self._place)
            )
        self._pool = next(self._pools)
        self._problems.report(self._pool.problems)
        return self._pool

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._place.number, "text": self._place.text, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.close()
        self._place = PoolPlace(state["pool"], state["text"])
        self._taken = state["taken"]

    def following(self) -> Mapping[str, Any]:
        if self._taken == 0:
            return self._place.text
        return (self._pool or self._receive()).following.text

    def close(self) -> None:
        if isinstance(self._pools, BackgroundPools):
            self._pools.close()
        self._pools = self._pool = None


def _limits(
    batch_size: int, batch_tokens: int | None, max_length: int, streams: int
) -> BatchLimits:
    """Each stream's share of a step."""
    if batch_tokens is None:
        if batch_size % streams:
            raise ValueError(
                f"optimisation.batch_size: got {batch_size}, expected a multiple of corpus.streams ({streams})"
            )
        return BatchLimits(batch_size // streams, None, max_length)
    if batch_tokens // streams < max_length:
        raise ValueError(
            f"optimisation.batch_tokens: got {batch_tokens}, expected corpus.streams ({streams}) times "
            f"corpus.max_length ({max_length}) or more"
        )
    return BatchLimits(batch_size, batch_tokens // streams, max_length)


def slices_of(
    streams: int, process: int, processes: int, accumulation: int
) -> tuple[range, int, int, int]:
    """The streams a process reads, how many pieces it makes of each one's batch, and that its rows are first::step."""
    if streams % processes == 0:
        each = streams // processes
        pieces = -(-accumulation // each)
        return range(process * each, (process + 1) * each), pieces, 0, pieces
    if processes % streams == 0:
        sharing = processes // streams
        stream, first = divmod(process, sharing)
        return range(stream, stream + 1), accumulation, first, sharing * accumulation
    raise ValueError(
        f"corpus.streams: got {streams} with {processes} processes, expected a multiple or a divisor of the "
        f"processes, such as {processes}"
    )


def _require_rows(limits: BatchLimits, pieces: int, streams: int) -> None:
    """Require that no batch of a stream can have fewer rows than pieces."""
    if limits.fewest >= pieces:
        return
    key, got = "batch_size", limits.sequences
    if limits.tokens is not None:
        key, got = "batch_tokens", limits.tokens
    raise ValueError(
        f"optimisation.{key}: got {got * streams}, which could leave one of {pieces * streams} pieces without a "
        f"sequence; expected {limits.needed(pieces) * streams} or more, or a lower optimisation.accumulation"
    )


def evaluation_batches(
    texts: Sequence[str], masking: Masking, batch_size: int, max_length: int, language: int
) -> list[Batch]:
    """Batches of the beginnings of some documents, masked the same way every time.

    Args:
        texts: documents of one language.
        masking: how they are masked.
        batch_size: sequences per batch.
        max_length: tokens per sequence, special tokens included.
        language: its place in the corpus's list of languages.
    """
    sequences = sorted(tokenise(masking.tokenizer, texts, max_length, cut=False), key=len)
    return [
        masking.collate(sequences[start : start + batch_size], number, language)
        for number, start in enumerate(range(0, len(sequences), batch_size))
    ]


def held_out(
    corpus: Corpus, masking: Masking, batch_size: int, max_length: int
) -> dict[str, list[Batch]]:
    """The evaluation batches of a corpus, by language."""
    return {
        language: evaluation_batches(
            texts, masking, batch_size, max_length, corpus.languages.index(language)
        )
        for language, texts in corpus.held_out().items()
    }
