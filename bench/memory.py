"""Peak memory: the allocator's counters on a GPU; on the CPU the resident set of a process that does nothing else."""

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from bench.cases import Case, Direction, Implementation, Op, Tensors, differentiate, timed_part
from comet.environment import resident_bytes

CLEAR_REFS = Path("/proc/self/clear_refs")
# What every child would import: torch._dynamo by the first call of a custom op, as torch has it.
_PRELOADED = ["torch", "torch._dynamo", "pytest", "comet_kernels", "comet_kernels.reference"]


def extra_bytes_on_gpu(
    implementation: Implementation, tensors: Tensors, direction: Direction
) -> int:
    """Peak of the timed part beyond the inputs: outputs, gradients, and what a forward before it has kept."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    call = timed_part(direction, implementation.function, tensors)
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def extra_bytes_on_cpu(module: str, smallest: Case, case: Case, name: str) -> int | None:
    """The same, in a child process, of constant inputs; None where the system cannot reset a peak, as only Linux can.

    Args:
        module: the benchmark module, which has the op as `OP`.
        smallest: run first, so that what libraries allocate once does not count.
        case: what is measured.
        name: of the implementation.
    """
    if not os.access(CLEAR_REFS, os.W_OK):
        return None
    with ProcessPoolExecutor(1, mp_context=_quick_to_start()) as pool:
        return pool.submit(
            _in_child, module, smallest, case, name, torch.get_num_threads()
        ).result()


def forget_peak(device: str) -> None:
    """Count the peak from here on, where the system can: a GPU's allocator, or Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access(CLEAR_REFS, os.W_OK):
        CLEAR_REFS.write_text("5", encoding="ascii")


@cache
def _quick_to_start() -> BaseContext:
    """Children of a server that has imported torch and run nothing; blocks freed go back to the system at once."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 16))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _in_child(module: str, smallest: Case, case: Case, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    op: Op = importlib.import_module(module).OP
    implementation = op.implementations[name]
    smallest, case = replace(smallest, constant=True), replace(case, constant=True)
    differentiate(implementation.function, implementation.prepare(op.set_up(smallest)))
    tensors = implementation.prepare(op.set_up(case))
    if implementation.compiles:
        differentiate(implementation.function, tensors)
    before = resident_bytes("VmRSS")
    call = timed_part(case.direction, implementation.function, tensors)
    forget_peak("cpu")
    found = call()
    extra = resident_bytes("VmHWM") - before
    del found
    return max(extra, 0)
