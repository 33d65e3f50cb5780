"""Which kernels an op launches and how long each takes, by `torch.profiler`; and what bandwidth that is.

    python -m bench.kernel_times [OP ...] [--device cuda] [--implementation comet] [--quick]

A table for the first case, forward and backward, of every op's benchmark on that device: a line for each kernel, the
longest first. Below it the op's least bytes and operations over the sum of the kernels: what is achieved without
launches and gaps, to compare with the same figures over the time that `pytest bench/` measures.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases import Case, Op, differentiate, synchronize
from comet.configuration import run_command

PROGRAM = "bench.kernel_times"
CALLS = 5
MOST = 12  # lines of a table


class Kernel(NamedTuple):
    """One kernel, or on a CPU one operator.

    Attributes:
        name: as the profiler has it.
        launches: of one call of the op.
        seconds: of one call, all launches together.
    """

    name: str
    launches: float
    seconds: float


def measure(op: Op, case: Case, implementation: str, calls: int = CALLS) -> list[Kernel]:
    """Kernels of an op forward and backward, the longest first."""
    chosen = op.implementations[implementation]
    tensors = chosen.prepare(op.set_up(case))
    for _ in range(2):
        differentiate(chosen.function, tensors)
    synchronize(case.device)
    on_gpu = case.device == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(calls):
            differentiate(chosen.function, tensors)
        synchronize(case.device)
    found = []
    for event in profiler.key_averages():
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if time > 0:
            found.append(Kernel(event.key, event.count / calls, time / calls / 1e6))
    return sorted(found, key=lambda kernel: -kernel.seconds)


def table(op: Op, case: Case, kernels: Sequence[Kernel]) -> Iterator[str]:
    """A head, a line for each kernel, and what all of them achieve."""
    total = sum(kernel.seconds for kernel in kernels)
    yield f"{op.name} {case}: {1e3 * total:.3f} ms in {sum(one.launches for one in kernels):.0f} launches"
    for kernel in kernels[:MOST]:
        share = kernel.seconds / total
        yield f"{1e3 * kernel.seconds:10.3f} ms {share:7.1%} {kernel.launches:8.1f} x  {kernel.name[:90]}"
    if len(kernels) > MOST:
        rest = sum(kernel.seconds for kernel in kernels[MOST:])
        yield f"{1e3 * rest:10.3f} ms {rest / total:7.1%}             {len(kernels) - MOST} more"
    if total > 0:
        work = op.work(case)
        rates = f"{work.bytes / total / 1e9:,.4g} GB/s"
        if work.operations:
            rates += f", {work.operations / total / 1e12:,.4g} TFLOP/s"
        yield f"least bytes and operations over their sum: {rates}"


def modules() -> dict[str, str]:
    """Benchmark modules by the name of their file: those that have an op."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if "\nOP = Op(" in path.read_text(encoding="utf-8"):
            found[path.stem.removeprefix("bench_")] = f"bench.{path.stem}"
    return found


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    known = modules()
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(known)}; all")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--implementation", default="comet")
    parser.add_argument("--quick", action="store_true", help="the benchmarks' small sizes")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not has_gpu:
        raise ValueError("--device cuda: torch finds no GPU here")
    for name in given.ops or known:
        if name not in known:
            raise ValueError(f"got op {name!r}, expected one of {', '.join(known)}")
        module = importlib.import_module(known[name])
        if given.implementation not in module.OP.implementations:
            print(f"{name}: left out, it has no {given.implementation}")
            continue
        cases = [case for case in module.CASES if case.device == given.device]
        quick = dataclasses.replace(module.QUICK, device=given.device)
        case = quick if given.quick or not cases else cases[0]
        kernels = measure(module.OP, case, given.implementation)
        print(*table(module.OP, case, kernels), "", sep="\n")


if __name__ == "__main__":
    run_command(main, PROGRAM)
