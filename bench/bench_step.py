"""A whole distillation step, forward, backward and AdamW, at the paper's shapes with random weights.

    python -m bench.bench_step                     all but unfused side by side, each in a process of its own
    python -m bench.bench_step --fused [...]       one way only; ends with one line of JSON
    python -m bench.bench_step --sweep             plain and fused at several batches, lengths and vocabularies

`bench/steps.py` says what each way is. Peak memory is that of the process, libraries and the building of the models
included, or from when the teacher has written its cache and is gone, counting what is mapped of the files; on a GPU
that of torch's allocator. Time by part is of steps of their own, that wait for the device at every border; a teacher's
and a student's have no head, and plain's have its maps of every head.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from bench import parts, results
from bench.cases import synchronize
from bench.steps import TINY, VARIANTS, Shapes, make_step
from comet.environment import machine_bytes, peak_resident_bytes
from comet.projections import trained_bytes

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


COMPARED = ("plain", "fused", "cached", "cached-top")
SIZES = ("batch", "length", "vocabulary")
# By device: the base, and the values that each of its sizes takes while the others stay.
SWEEP: dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]]]] = {
    "cpu": (
        {"batch": 2, "length": 64, "vocabulary": 250_002},
        {"batch": (1, 2, 4), "length": (32, 64, 128), "vocabulary": (62_500, 125_000, 250_002)},
    ),
    "cuda": (
        {"batch": 32, "length": 128, "vocabulary": 250_002},
        {
            "batch": (8, 32, 128),
            "length": (32, 64, 128, 256, 512),
            "vocabulary": (62_500, 125_000, 250_002),
        },
    ),
}


def run(variant: str, shapes: Shapes, steps: int) -> results.Record:
    """Time some steps after a first one that does not count.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    steps_of = make_step(variant, shapes)
    step = steps_of.step
    losses, seconds = [step().item()], []
    for _ in range(steps):
        synchronize(shapes.device)
        start = time.perf_counter()
        losses.append(step().item())
        seconds.append(time.perf_counter() - start)
    if not all(abs(loss) < float("inf") for loss in losses):
        raise FloatingPointError(f"losses {losses}")
    median = statistics.median(seconds)
    on_gpu = shapes.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
    sizes = {name: value for name, value in asdict(shapes).items() if isinstance(value, int)}
    return {
        "variant": variant,
        "sizes": sizes,
        "dtype": shapes.precision,
        "device": shapes.device,
        "median_seconds": median,
        "seconds": seconds,
        "tokens_per_second": shapes.batch * shapes.length / median,
        "peak_bytes": peak,
        "parts": parts.medians([steps_of.parts() for _ in range(steps)]),
        "losses": losses,
    }


def run_in_child(variant: str, options: argparse.Namespace) -> results.Record | None:
    """`run` in a process of its own, so that its peak is its own; None where it failed, which it says itself."""
    command = [sys.executable, "-m", "bench.bench_step", f"--{variant}"]
    for name in (*SIZES, "dtype", "device", "steps", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode != 0:
        print(f"bench_step: the {variant} step ended with exit code {ran.returncode}")
        return None
    record: results.Record = json.loads(ran.stdout.splitlines()[-1])
    return record


def sweep_of(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each point: the base, then what differs from it in one size."""
    base, changes = SWEEP[options.device]
    points = [base] + [
        {**base, size: value} for size, values in changes.items() for value in values
    ]
    distinct = dict.fromkeys(tuple(point[size] for size in SIZES) for point in points)
    return [
        argparse.Namespace(**{**vars(options), **dict(zip(SIZES, point, strict=True))})
        for point in distinct
    ]


def why_not(variant: str, options: argparse.Namespace) -> str | None:
    """Why a variant would not fit, where that is known beforehand; None where it is not."""
    on_gpu = options.device == "cuda"
    there = torch.cuda.get_device_properties(0).total_memory if on_gpu else machine_bytes()
    needed = trained_bytes(options.length**4)
    if variant != "plain" or there is None or needed <= there:
        return None
    return (
        f"plain at {options.length} tokens: its dense projection takes {needed / 2**30:,.0f} GiB with gradient "
        f"and optimizer state, there are {there / 2**30:,.0f} GiB"
    )


def run_all(
    variants: Sequence[str], points: Sequence[argparse.Namespace]
) -> tuple[list[results.Record], list[str]]:
    """Records of all variants at all points, each in a process of its own, and what was left out."""
    records, left_out = [], []
    for point in points:
        for variant in variants:
            reason = why_not(variant, point)
            record = None if reason else run_in_child(variant, point)
            if record is not None:
                records.append(record)
            else:
                sizes = ", ".join(f"{size} {getattr(point, size):,}" for size in SIZES)
                left_out.append(reason or f"{variant} at {sizes}: it failed, as said above")
    return records, left_out


def growth(records: list[results.Record]) -> list[str]:
    """A line for each record of a sweep."""
    lines = [
        f"{'batch':>6} {'length':>6} {'vocabulary':>10}  {'':10}  {'s per step':>10}  {'tokens/s':>9}  peak memory"
    ]
    for record in records:
        batch, length, vocabulary = (record["sizes"][size] for size in SIZES)
        lines.append(
            f"{batch:6} {length:6} {vocabulary:10,}  {record['variant']:10}  {record['median_seconds']:10.3f}"
            f"  {record['tokens_per_second']:9,.0f}  {record['peak_bytes'] / 2**30:7.2f} GiB"
        )
    return lines


def by_part(records: list[results.Record]) -> list[str]:
    """Milliseconds of each part, a column for each variant."""
    names = dict.fromkeys(name for record in records for name in record["parts"])
    lines = [f"{'ms of':12}" + "".join(f"  {record['variant']:>10}" for record in records)]
    for name in names:
        cells = (record["parts"].get(name) for record in records)
        shown = (f"{'-' if cell is None else format(1e3 * cell, ',.1f'):>10}" for cell in cells)
        lines.append("  ".join((f"{name:12}", *shown)))
    return lines


def compare(records: list[results.Record]) -> list[str]:
    """A table, with ratios to the first variant."""
    lines = [
        f"{'':10}  {'s per step':>10}  {'tokens/s':>10}  {'peak memory':>11}  {'speed':>7}  memory"
    ]
    for record in records:
        speed = records[0]["median_seconds"] / record["median_seconds"]
        memory = record["peak_bytes"] / records[0]["peak_bytes"]
        lines.append(
            f"{record['variant']:10}  {record['median_seconds']:10.3f}"
            f"  {record['tokens_per_second']:10,.0f}  {record['peak_bytes'] / 2**30:7.2f} GiB"
            f"  {speed:6.2f}x  {memory:5.2f}x"
        )
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    chosen = parser.add_mutually_exclusive_group()
    for variant in VARIANTS:
        chosen.add_argument(
            f"--{variant}", dest="variant", action="store_const", const=variant, help="only this"
        )
    chosen.add_argument("--sweep", action="store_true", help="plain and fused at several sizes")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--vocabulary", type=int, default=250_002, help="entries")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="into bench/results")
    return parser.parse_args(arguments)


def main() -> None:
    """Run one variant, or several side by side; save and print what came of it."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.variant:
        shapes = Shapes(
            options.batch,
            options.length,
            options.dtype,
            options.device,
            vocabulary=options.vocabulary,
        )
        try:
            records = [run(options.variant, shapes, options.steps)]
        except torch.OutOfMemoryError:
            sys.exit(f"bench_step: the {options.variant} step does not fit into this GPU")
    elif options.sweep:
        records, left_out = run_all(("plain", "fused"), sweep_of(options))
        print(*growth(records), *(f"left out: {reason}" for reason in left_out), sep="\n")
    else:
        records, left_out = run_all(COMPARED, [options])
        print(*compare(records), "", *by_part(records), sep="\n")
        print(*(f"left out: {reason}" for reason in left_out), sep="\n")
    if options.save and records:
        print(f"saved {results.save('steps', records)}")
    print(json.dumps(records[0] if options.variant else records))
    if not any(record["variant"] == (options.variant or "fused") for record in records):
        sys.exit(1)


def bench_step(benchmark: "BenchmarkFixture", variant: str) -> None:
    """Tiny models: all ways give the same loss, from a cache as near as 16 bits are, and a step of theirs runs."""
    loss, step, _ = make_step(variant, TINY)
    expected = make_step("plain", TINY).loss
    tolerance = 1e-3 if variant.startswith("cached") else 1e-5
    torch.testing.assert_close(loss(), expected(), rtol=tolerance, atol=0)
    benchmark.group = "step of tiny models"
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
