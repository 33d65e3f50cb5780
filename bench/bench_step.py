"""A whole distillation step, forward, backward and AdamW, at the paper's shapes with random weights.

    python -m bench.bench_step                     all but unfused side by side, each in a process of its own
    python -m bench.bench_step --fused [...]       one way only; ends with one line of JSON

`bench/steps.py` says what each way is. Peak memory is that of the process, libraries and the building of the models
included, or from when the teacher has written its cache and is gone, counting what is mapped of the files; on a GPU
that of torch's allocator.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from bench import results
from bench.cases import synchronize
from bench.steps import TINY, VARIANTS, Shapes, make_step
from comet.environment import peak_resident_bytes

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


COMPARED = ("plain", "fused", "cached", "cached-top")


def run(variant: str, shapes: Shapes, steps: int) -> results.Record:
    """Time some steps after a first one that does not count.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    _, step = make_step(variant, shapes)
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
    sizes = {name: value for name, value in asdict(shapes).items() if isinstance(value, int)}
    return {
        "variant": variant,
        "sizes": sizes,
        "dtype": shapes.precision,
        "device": shapes.device,
        "median_seconds": median,
        "seconds": seconds,
        "tokens_per_second": shapes.batch * shapes.length / median,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes(),
        "losses": losses,
    }


def run_in_child(variant: str, options: argparse.Namespace) -> results.Record | None:
    """`run` in a process of its own, so that its peak is its own; None where it failed, which it says itself."""
    command = [sys.executable, "-m", "bench.bench_step", f"--{variant}"]
    for name in ("batch", "length", "dtype", "device", "steps", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode != 0:
        print(f"bench_step: the {variant} step ended with exit code {ran.returncode}")
        return None
    record: results.Record = json.loads(ran.stdout.splitlines()[-1])
    return record


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
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
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
        shapes = Shapes(options.batch, options.length, options.dtype, options.device)
        try:
            records = [run(options.variant, shapes, options.steps)]
        except torch.OutOfMemoryError:
            sys.exit(f"bench_step: the {options.variant} step does not fit into this GPU")
    else:
        found = [run_in_child(variant, options) for variant in COMPARED]
        records = [record for record in found if record is not None]
        print(*compare(records), sep="\n")
    if options.save and records:
        print(f"saved {results.save('steps', records)}")
    print(json.dumps(records[0] if options.variant else records))
    if not any(record["variant"] == (options.variant or "fused") for record in records):
        sys.exit(1)


def bench_step(benchmark: "BenchmarkFixture", variant: str) -> None:
    """Tiny models: all ways give the same loss, from a cache as near as 16 bits are, and a step of theirs runs."""
    loss, step = make_step(variant, TINY)
    expected, _ = make_step("plain", TINY)
    tolerance = 1e-3 if variant.startswith("cached") else 1e-5
    torch.testing.assert_close(loss(), expected(), rtol=tolerance, atol=0)
    benchmark.group = "step of tiny models"
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
