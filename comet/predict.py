"""`python -m comet.predict`: labels or entities for texts, one per line.

    python -m comet.predict --model runs/sentiment < texts > labels.jsonl
    python -m comet.predict --model runs/sentiment --format tsv < texts | cut -f 1 | sort | uniq -c

Input and output are UTF-8, whatever the terminal's encoding is. Every line of input is answered in order, also one that
holds no text: with null. A tagging model gives entities with the places of their first character and the one after the
last; in .tsv a line for each entity, behind the number of its text.
"""

import argparse
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from comet.classifier import Classifier, Entity, Prediction
from comet.configuration import CommandParser, run_command, whole_number
from comet.corpus.encodings import conversion, mark_error
from comet.streams import READER_LEFT, has_reader

PROGRAM = "comet.predict"
_CHUNK = 1024  # lines that are sorted by length together
_KEYS = {"sequence": ("label", "probabilities"), "token": ("entities",)}

Answer = Prediction | list[Entity] | None
"""What is said about a line: None where it holds no text."""


def answers(classifier: Classifier, lines: Iterable[bytes]) -> Iterator[tuple[str, Answer]]:
    """The text of each line and what the model says to it, in order, read as it is needed.

    Args:
        classifier: that is asked.
        lines: UTF-8; an empty one has no answer.

    Raises:
        ValueError: a line is not UTF-8; the 1,024 lines that it is read with have no answer either.
    """
    rest = decoded(lines)
    while texts := list(itertools.islice(rest, _CHUNK)):
        asked = [text if text.strip() else None for text in texts]
        usable = [text for text in asked if text is not None]
        call: Callable[[Sequence[str]], Sequence[Answer]] = (
            classifier.entities if classifier.kind == "token" else classifier.predict
        )
        given = iter(call(usable))
        for text, one in zip(texts, asked, strict=True):
            yield text, None if one is None else next(given)


def decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """The lines without their ends and byte order marks.

    Raises:
        ValueError: one is not text in UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        reason = mark_error(line, "FILE") if number == 1 else None
        if reason is not None:
            raise ValueError(f"input: it {reason}")
        try:
            text = line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"input: line {number} is not in UTF-8 (byte {error.object[error.start]:#x}); {conversion()}"
            ) from error
        if "\0" in text:
            raise ValueError(f"input: line {number} holds NUL characters, expected text in UTF-8")
        yield text


def main(argv: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: there is no such model, an option is wrong, or the input is not in UTF-8.
    """
    options = _parser().parse_args(list(argv))
    classifier = Classifier(
        options.model,
        language=options.language,
        device=options.device,
        batch_size=options.batch_size,
    )
    if classifier.choice:
        print(f"{PROGRAM}: {classifier.choice}", file=sys.stderr)
    write = _as_json if options.format == "jsonl" else _as_tsv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    without = total = 0
    given = _input()
    if given.seekable():  # a file: it is refused before anything is written
        begin = given.tell()
        for _ in decoded(given):
            pass
        given.seek(begin)
    for total, (text, answer) in enumerate(answers(classifier, given), start=1):
        without += answer is None
        for line in write(total, text, answer, classifier.kind):
            sys.stdout.write(line + "\n")
        if not has_reader():  # whoever read has enough
            raise SystemExit(READER_LEFT)
    if without:
        print(f"{PROGRAM}: {without} of {total} lines hold no text", file=sys.stderr)


def _input() -> BinaryIO:
    return sys.stdin.buffer


def _as_json(number: int, text: str, answer: Answer, kind: str) -> Iterator[str]:
    said: dict[str, object] = {}
    if isinstance(answer, list):
        said = {"entities": [vars(entity) for entity in answer]}
    elif answer is not None:
        said = {"label": answer.label, "probabilities": answer.probabilities}
    yield json.dumps({"text": text, **(said or dict.fromkeys(_KEYS[kind]))}, ensure_ascii=False)


def _as_tsv(number: int, text: str, answer: Answer, kind: str) -> Iterator[str]:
    if isinstance(answer, list):
        for one in answer:
            yield f"{number}\t{one.type}\t{one.start}\t{one.end}\t{_flat(one.text)}"
    elif answer is not None:
        yield f"{answer.label}\t{answer.probabilities[answer.label]:.4f}\t{_flat(text)}"
    elif kind == "sequence":
        yield f"\t\t{_flat(text)}"


def _flat(text: str) -> str:
    """Text for a column."""
    return text.replace("\t", " ")


def _positive(text: str) -> int:
    number = whole_number(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}", description="Label texts, one per line of input."
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a fine-tuned model's folder, or a run of comet.finetune, whose best seed on dev is taken",
    )
    parser.add_argument(
        "--language", metavar="CODE", help="of the texts, where the run has a model for each"
    )
    parser.add_argument("--format", choices=("jsonl", "tsv"), default="jsonl", help="of the output")
    parser.add_argument("--batch-size", type=_positive, default=32, help="texts read at once")
    parser.add_argument("--device", help="such as cuda:0; none: the accelerator, or else the CPU")
    return parser


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
