"""Time and memory of one text through a model, in a process of its own: `python -m comet.report.measuring DIR`.

A process that has loaded nothing yet is asked for its peak before and after, so that what other models left behind in
memory does not count; what torch and transformers take themselves is subtracted.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from comet.environment import environment_of_one, peak_resident_bytes
from comet.streams import prepare_output

TOKENS = 32
_WARM_UP, _ROUNDS, _PATIENCE = 5, 30, 300


@dataclass(frozen=True)
class Cost:
    """Of a batch of one, on this machine's CPU.

    Attributes:
        milliseconds: median of one pass.
        slowest: its 95th percentile.
        bytes: peak of memory that loading and the passes took beyond the bare libraries; None where it is not known.
        threads: of torch.
    """

    milliseconds: float
    slowest: float
    bytes: int | None
    threads: int


def cost_of(folder: Path) -> Cost:
    """What a saved model costs to run, found by another process.

    Args:
        folder: a transformers model with its tokenizer, or what `--model tfidf` left.

    Raises:
        ValueError: it cannot be run; the reason in one line.
    """
    command = [sys.executable, "-m", "comet.report.measuring", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, env=environment_of_one()
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{folder} took more than {_PATIENCE} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(lines[-1])
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


def shape_of(folder: Path) -> str:
    """The same for models that differ in their weights alone: such cost the same and are measured once."""
    file = folder / "config.json"
    if not file.is_file():
        return str(folder.resolve())
    config = json.loads(file.read_text(encoding="utf-8"))
    names = ("_name_or_path", "transformers_version", "id2label", "label2id")
    kept = {key: value for key, value in config.items() if key not in names}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def measure(folder: Path) -> Cost:
    """Load a model here and run it."""
    import torch

    from comet.profiles.resident import libraries_bytes

    libraries = libraries_bytes()
    run = _transformer(folder) if (folder / "config.json").is_file() else _other(folder)
    for _ in range(_WARM_UP):
        run()
    seconds = sorted(_seconds(run) for _ in range(_ROUNDS))
    return Cost(
        milliseconds=1e3 * statistics.median(seconds),
        slowest=1e3 * seconds[int(0.95 * _ROUNDS)],
        bytes=None if libraries is None else max(peak_resident_bytes() - libraries, 0),
        threads=torch.get_num_threads(),
    )


def _transformer(folder: Path) -> Callable[[], object]:
    """One pass over 32 tokens."""
    import torch

    from comet.profiles.models import find
    from comet.profiles.running import open_model, sample

    model = find(str(folder))
    inputs = sample(model, 1, TOKENS)
    opened = open_model(model, torch.device("cpu"), torch.get_num_threads())
    return lambda: opened(*inputs)


def _other(folder: Path) -> Callable[[], object]:
    """A text of 32 words through a classifier that is no transformer."""
    from comet.classifier import Classifier
    from comet.toy import toy_sentences

    classifier = cast(Any, Classifier(str(folder)))
    words = " ".join(toy_sentences("swa", TOKENS)).split()[:TOKENS]
    return lambda: classifier.predict([" ".join(words)])


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Print the cost of one model as JSON."""
    print(json.dumps(asdict(measure(Path(argv[0])))))


if __name__ == "__main__":
    prepare_output()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(" ".join(str(error).split()))
