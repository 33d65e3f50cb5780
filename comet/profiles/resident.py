"""Memory that a model takes, found in a process that has loaded nothing else.

    python -m comet.profiles.resident MODEL LENGTH THREADS DEVICE

What torch, transformers and onnxruntime take themselves is subtracted.
"""

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import transformers

from comet.environment import STATUS, environment_of_one, peak_resident_bytes, resident_bytes
from comet.profiles.models import Model, find
from comet.profiles.running import open_model, sample
from comet.streams import prepare_output

_PATIENCE = 900  # seconds
_KILLED = (-9, 137)


@dataclass(frozen=True)
class Resident:
    """Bytes beyond what the libraries take; on a GPU, of its memory.

    Attributes:
        loaded: with all weights in memory; None where the system does not say.
        peak: the most, while the model was loaded and read one sequence.
    """

    loaded: int | None
    peak: int | None


def resident_of(
    model: Model, length: int, threads: int, device: torch.device, *, flag: str = "--model"
) -> Resident:
    """Memory that a model takes, found by another process.

    Args:
        model: of `find`.
        length: tokens of the sequence that it reads.
        threads: of torch and onnxruntime.
        device: that runs it.
        flag: the option that named the model, for messages.

    Raises:
        ValueError: it cannot be run; the reason in one line.
    """
    arguments = [model.found, str(length), str(threads), str(device)]
    command = [sys.executable, "-m", "comet.profiles.resident", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, env=environment_of_one()
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{flag}: loading {model.name} took more than {_PATIENCE} s") from error
    if done.returncode in _KILLED:
        raise ValueError(
            f"{flag}: the system ended the process that loaded {model.name}, most likely because memory ran out"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = lines[-1].removeprefix("--model: ")  # as that process calls it
        raise ValueError(f"{flag}: cannot run {model.name}: {reason}")
    return Resident(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure(found: str, length: int, threads: int, device: torch.device) -> Resident:
    """Load a model here and run it once."""
    torch.set_num_threads(threads)
    model = find(found)
    inputs = sample(model, 1, length)
    if device.type == "cuda":
        run = open_model(model, device, threads)
        loaded = torch.cuda.memory_allocated(device)
        run(*inputs)
        return Resident(loaded, torch.cuda.max_memory_allocated(device))
    libraries = libraries_bytes()
    run = open_model(model, device, threads)
    if libraries is None:
        return Resident(None, None)
    loaded = resident_bytes("VmRSS")
    run(*inputs)
    return Resident(max(loaded - libraries, 0), max(peak_resident_bytes() - libraries, 0))


def libraries_bytes() -> int | None:
    """What the libraries hold, once all that a first use loads lazily is there; None where the system does not say."""
    with contextlib.suppress(ImportError):
        importlib.import_module("onnxruntime")
    small = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with torch.inference_mode():
        transformers.BertModel(small).eval()(input_ids=torch.ones(1, 8, dtype=torch.long))
    return resident_bytes("VmRSS") if STATUS.exists() else None


def main(argv: Sequence[str]) -> None:
    """Print what one model takes as JSON."""
    found, length, threads, device = argv
    print(json.dumps(asdict(measure(found, int(length), int(threads), torch.device(device)))))


if __name__ == "__main__":
    prepare_output()
    transformers.utils.logging.disable_progress_bar()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
