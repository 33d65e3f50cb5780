"""How a Triton kernel is launched: options from a table by architecture, a search only under `COMET_AUTOTUNE=1`."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

Options = dict[str, int]  # block sizes by name, num_warps, num_stages
Table = dict[
    tuple[str, str], Options
]  # by (architecture, shape class); "default" is any NVIDIA GPU


@functools.cache
def architecture(device: torch.device) -> str:
    """The name Triton's backends use, such as "sm_90" or "gfx942"; "cpu" under Triton's interpreter."""
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def lookup(table: Table, arch: str, shape_class: str) -> Options:
    """The table's row for an architecture, else for its family ("gfx"), else the default row."""
    for name in (arch, "gfx" if arch.startswith("gfx") else "default", "default"):
        if (name, shape_class) in table:
            return table[name, shape_class]
    raise KeyError(shape_class)


def products_in_tf32(device: torch.device) -> bool:
    """Whether torch lets float32 matrix products on this GPU run in TF32 (never unless the user said so)."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.backends.cuda.matmul.fp32_precision == "tf32"


def launch(
    kernel: Any,
    grid: Callable[[Options], tuple[int, ...]],
    arguments: Sequence[Any],
    constants: dict[str, Any],
    table: Table,
    shape_class: str,
    device: torch.device,
    *,
    repeatable: bool = True,
) -> None:
    """Run a kernel with the options of its table.

    `repeatable` says that running it twice leaves the same result, so that a search may time it.
    """

    def run(options: Options) -> None:
        kernel[grid(options)](*arguments, **constants, **options)

    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        run(_choose(kernel, table, shape_class, device, run if repeatable else None))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on a device; None where it is off, or there is none, as for meta tensors."""
    known = torch.amp.is_autocast_available(device.type)
    enabled = known and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What an implementation runs in: autocast would round float32 work behind its back."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


_found: dict[tuple[str, str, str], Options] = {}


def options_found() -> dict[tuple[str, str, str], Options]:
    """What searches of this process found, by kernel, architecture and shape class."""
    return dict(_found)


def _choose(
    kernel: Any,
    table: Table,
    shape_class: str,
    device: torch.device,
    run: Callable[[Options], None] | None,
) -> Options:
    shipped = lookup(table, architecture(device), shape_class)
    if device.type != "cuda" or os.environ.get("COMET_AUTOTUNE") != "1":
        return shipped
    key = (kernel.fn.__name__, architecture(device), shape_class)
    if key not in _found and run is not None:
        _found[key] = min(_variations(shipped), key=lambda options: _milliseconds(run, options))
    return _found.get(key, shipped)


def _variations(shipped: Options) -> list[Options]:
    """The shipped options and their neighbours: one block size halved or doubled, other warps, other stages."""
    neighbours = [shipped]
    for name, value in shipped.items():
        for changed in (value // 2, value * 2) if name != "num_stages" else (1, 2, 3, 4):
            smallest = 16 if name.startswith("BLOCK") else 1
            largest = 16 if name == "num_warps" else 1 << 16
            if smallest <= changed <= largest and changed != value:
                neighbours.append({**shipped, name: changed})
    return neighbours


def _milliseconds(run: Callable[[Options], None], options: Options) -> float:
    from triton import testing
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        return float(testing.do_bench(lambda: run(options)))
    except (OutOfResources, PTXASError):
        return float("inf")
