"""The path of the text alone, from files to batches: tokens per second that the step has to stay below.

    python -m bench.bench_data --corpus PATH [--tokenizer DIR] [--workers 0 1 2] [--streamed]

Steps are taken as fast as they come. The first one waits for a pool of text, and for the processes to start; the rate
is of those after it. What the main process spends on a step is time that it takes from launching the model's work.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from comet.batches import Masking, StepBatches
from comet.configuration import run_command
from comet.corpus import Corpus, open_corpus
from comet.students import load_tokenizer
from comet.tokenizers import train_tokenizer

PROGRAM = "bench.bench_data"
TRAINING_DOCUMENTS = 20_000


class Rate(NamedTuple):
    """What was measured with some number of workers.

    Attributes:
        workers: background processes.
        first_seconds: until the first step was there.
        tokens_per_second: real tokens of the steps after it.
        padding: share of a batch that is padding.
        main_milliseconds: processor time of the main process for each step.
    """

    workers: int
    first_seconds: float
    tokens_per_second: float
    padding: float
    main_milliseconds: float


def measure(
    corpus: Corpus, masking: Masking, given: argparse.Namespace, workers: int, seconds: float
) -> Rate:
    """Take steps for some seconds."""
    batches = StepBatches(
        corpus,
        masking,
        batch_size=given.batch_size,
        batch_tokens=given.batch_tokens,
        max_length=given.max_length,
        workers=workers,
    )
    start = time.perf_counter()
    next(batches)
    first = time.perf_counter() - start
    tokens = area = steps = 0
    start, busy = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        for piece in next(batches):
            tokens += piece.tokens
            area += piece.input_ids.numel()
        steps += 1
    busy = time.process_time() - busy
    batches.close()
    return Rate(workers, first, tokens / elapsed, 1 - tokens / area, 1e3 * busy / steps)


def table(rates: Sequence[Rate]) -> list[str]:
    """A head and a line for each number of workers."""
    head = f"{'workers':>7} {'first step':>11} {'tokens/s':>11} {'padding':>8} {'main process':>16}"
    return [
        head,
        *(
            f"{one.workers:7} {one.first_seconds:9.2f} s {one.tokens_per_second:11,.0f} {one.padding:8.1%} "
            f"{one.main_milliseconds:8.1f} ms/step"
            for one in rates
        ),
    ]


def _tokenizer(given: argparse.Namespace, corpus: Corpus) -> PreTrainedTokenizerFast:
    if given.tokenizer is not None:
        return load_tokenizer(given.tokenizer, flag="--tokenizer")
    documents = itertools.islice(corpus.training_stream(), TRAINING_DOCUMENTS)
    return train_tokenizer((one.text for one in documents), given.vocabulary, given.max_length)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("--corpus", nargs="+", required=True, help="as comet.distill takes it")
    parser.add_argument("--languages", nargs="+", help="only these language codes")
    parser.add_argument("--tokenizer", help="hub id or folder; none: one trained on the corpus")
    parser.add_argument("--vocabulary", type=int, default=30_000, help="entries of that one")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streamed", action="store_true", help="hold nothing in memory")
    parser.add_argument("--batch-size", type=int, default=128, help="sequences per step")
    parser.add_argument("--batch-tokens", type=int, help="tokens per step instead")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    given = parser.parse_args(argv)
    corpus = open_corpus(
        given.corpus,
        languages=given.languages,
        temperature=1.0,
        seed=0,
        held_out_per_language=64,
        in_memory=0 if given.streamed else 1 << 20,
    )
    masking = Masking(_tokenizer(given, corpus), 0.15, "all", 0)
    rates = [measure(corpus, masking, given, count, given.seconds) for count in given.workers]
    print("\n".join(table(rates)))


if __name__ == "__main__":
    run_command(main, PROGRAM)
