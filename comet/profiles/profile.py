"""The profile of one model or two: what is measured, in which order, and the JSON that holds it.

    schema        1
    hardware      processor, processors, memory_bytes, gpu
    threads, device, batch, versions, commit
    models        of each: name, timed, runtime, parameters, disk, resident, latency, throughput, published
    ratios        how many times smaller or faster the first model is than the second, null without one

`latency` is of one sequence, `throughput` of `batch` of them: length, seconds (p50, p95) and passes that were counted,
for throughput also tokens_per_second and sequences_per_second, by the median.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from comet.environment import available_bytes, commit, machine_bytes, processor, versions
from comet.profiles.models import Model
from comet.profiles.resident import resident_of
from comet.profiles.running import Run, open_model, sample
from comet.profiles.sizes import Parameters, disk_of, parameters_of
from comet.profiles.timing import Patience, Times, times_of

FLAGS = ("--model", "--against")
_PACKAGES = ("torch", "transformers", "onnxruntime")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        lengths: tokens per sequence, ascending.
        batch: sequences that are read at once where throughput is measured.
        threads: of torch and onnxruntime.
        device: that runs the models.
        latency: how often one sequence is read, and how long at most.
        throughput: how often a batch is.
    """

    lengths: Sequence[int]
    batch: int
    threads: int
    device: torch.device
    latency: Patience
    throughput: Patience


def profile(
    models: Sequence[Model], settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one model, or two in turns.

    Args:
        models: one or two.
        settings: what is measured.
        say: is told what is done now.

    Returns:
        What the JSON holds.

    Raises:
        ValueError: a model cannot be run, or has no positions for a length; or memory is too small.
    """
    sizes = []
    for flag, model in zip(FLAGS, models, strict=False):
        longest = model.longest()
        if settings.lengths[-1] > longest:
            raise ValueError(
                f"--lengths: got {settings.lengths[-1]}, but {model.name} ({flag}) has positions for {longest} tokens"
            )
        parameters = parameters_of(model.skeleton())
        sizes.append((parameters, disk_of(model, parameters.total)))
    _require_memory(models, [parameters for parameters, _ in sizes], settings.device)
    resident = []
    for flag, model in zip(FLAGS, models, strict=False):
        say(f"memory of {model.name}")
        resident.append(
            resident_of(model, settings.lengths[-1], settings.threads, settings.device, flag=flag)
        )
    runs = []
    for flag, model in zip(FLAGS, models, strict=False):
        say(f"loading {model.name}")
        runs.append(open_model(model, settings.device, settings.threads, flag=flag))
    latency = _timed(models, runs, settings, 1, settings.latency, say)
    throughput = _timed(models, runs, settings, settings.batch, settings.throughput, say)
    found = []
    for place, model in enumerate(models):
        parameters, disk = sizes[place]
        found.append(
            {
                "name": model.name,
                "timed": model.timed,
                "runtime": model.runtime,
                "parameters": asdict(parameters),
                "disk": asdict(disk),
                "resident": asdict(resident[place]),
                "latency": [
                    {"length": length, **_in_seconds(times[place])}
                    for length, times in zip(settings.lengths, latency, strict=True)
                ],
                "throughput": [
                    {
                        "length": length,
                        **_in_seconds(times[place]),
                        "tokens_per_second": settings.batch * length / times[place].p50,
                        "sequences_per_second": settings.batch / times[place].p50,
                    }
                    for length, times in zip(settings.lengths, throughput, strict=True)
                ],
                "published": asdict(model.published) if model.published else None,
            }
        )
    return {
        "schema": 1,
        "hardware": hardware(settings.device),
        "threads": settings.threads,
        "device": str(settings.device),
        "batch": settings.batch,
        "versions": versions(_PACKAGES),
        "commit": commit(),
        "models": found,
        "ratios": ratios(*found) if len(found) == 2 else None,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor, memory and, where it is what runs the models, the GPU."""
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_bytes": machine_bytes(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def ratios(model: Mapping[str, Any], against: Mapping[str, Any]) -> dict[str, Any]:
    """How many times smaller or faster one model is than the other: above 1 where it is.

    Args:
        model: as in the JSON.
        against: likewise, with the same lengths.
    """

    def smaller(part: str) -> dict[str, float | None]:
        return {
            name: _over(against[part][name], value)
            for name, value in model[part].items()
            if not isinstance(value, bool)
        }

    return {
        "parameters": smaller("parameters"),
        "disk": smaller("disk"),
        "resident": smaller("resident"),
        **{
            kind: [
                {
                    "length": ours["length"],
                    **{
                        name: theirs["seconds"][name] / value
                        for name, value in ours["seconds"].items()
                    },
                }
                for ours, theirs in zip(model[kind], against[kind], strict=True)
            ]
            for kind in ("latency", "throughput")
        },
    }


def _over(above: int | None, below: int | None) -> float | None:
    return above / below if above and below else None


def _in_seconds(times: Times) -> dict[str, Any]:
    return {"seconds": {"p50": times.p50, "p95": times.p95}, "passes": times.passes}


def _timed(
    models: Sequence[Model],
    runs: Sequence[Run],
    settings: Settings,
    batch: int,
    patience: Patience,
    say: Callable[[str], None],
) -> list[list[Times]]:
    """Of each length, the times of each model."""
    found = []
    for length in settings.lengths:
        say(f"timing {batch} x {length} tokens")
        inputs = [sample(model, batch, length) for model in models]
        calls = [_call(run, one) for run, one in zip(runs, inputs, strict=True)]
        found.append(times_of(calls, patience))
    return found


def _call(run: Run, inputs: tuple[Any, Any]) -> Callable[[], object]:
    return lambda: run(*inputs)


def _require_memory(
    models: Sequence[Model], parameters: Sequence[Parameters], device: torch.device
) -> None:
    """Refuse models whose weights alone do not fit; they are in memory together while they take turns.

    Raises:
        ValueError: they do not.
    """
    needed = sum(4 * one.total for one in parameters)
    if device.type == "cuda":
        there, where = torch.cuda.mem_get_info(device)[0], "GPU"
    else:
        there, where = available_bytes(), "machine"
    if needed > there:
        names = " and ".join(model.name for model in models)
        raise ValueError(
            f"--model: the weights of {names} take {needed / 2**30:.1f} GiB in float32, but this {where} has "
            f"{there / 2**30:.1f} GiB free; close other programs, measure one model at a time, or take a smaller one"
        )
