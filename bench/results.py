"""Results as files, `bench/results/<machine>-<commit>.json`, and what is measured of the machine itself.

A file holds `ops`, one record per case and implementation, and `steps`, one per kind of step. Running part of the
benchmarks again replaces only the records it makes anew.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import synchronize
from comet import environment

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "pytest-benchmark",
    "liger-kernel",
    "fla-core",
    "textbrewer",
)
_IDENTITY = {
    "ops": ("op", "sizes", "without", "direction", "dtype", "device", "implementation"),
    "steps": ("variant", "sizes", "dtype", "device"),
}


def save(section: str, records: Sequence[Record], **facts: Record) -> Path:
    """Put records into the file of this machine and commit, in place of older ones of the same cases.

    Args:
        section: "ops" or "steps".
        records: JSON, with at least the fields that tell cases of the section apart.
        facts: more to store beside the sections, by device; those of other devices stay.

    Returns:
        The file.
    """
    hardware = describe_hardware()
    name = hardware.get("gpu") or hardware["cpu"]
    path = RESULTS / f"{slug(name)}-{_commit()}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    fresh = {_identity(section, record) for record in records}
    kept = [old for old in stored.get(section, []) if _identity(section, old) not in fresh]
    stored |= {
        "machine": name,
        "commit": _commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": describe_versions(),
        "hardware": hardware,
        **{fact: stored.get(fact, {}) | found for fact, found in facts.items()},
        section: kept + list(records),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def _commit() -> str:
    return slug(environment.commit() or "unknown")


def slug(name: str) -> str:
    """A name as part of a file name: "NVIDIA H200" to "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def describe_versions() -> dict[str, str | None]:
    """Python, CUDA or HIP, and the packages that the figures depend on."""
    return {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        **environment.versions(_PACKAGES),
    }


def describe_hardware() -> Record:
    """Processor, memory, threads in use and, where there is one, the GPU."""
    hardware: Record = {
        "cpu": environment.processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": environment.machine_bytes(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        hardware["gpu"] = properties.name
        hardware["gpu_memory_bytes"] = properties.total_memory
        hardware["gpu_multiprocessors"] = properties.multi_processor_count
    return hardware


def measure_ceilings(device: str) -> dict[str, float]:
    """What the device can do at most: bytes read and written per second by a copy, operations by matrix products."""
    large = device == "cuda"
    size, count = (8192, 1 << 30) if large else (1536, 64 << 20)
    dtypes = (torch.float32, torch.bfloat16) if large else (torch.float32,)
    products = {
        f"{str(dtype).removeprefix('torch.')}_product_teraflops_per_second": 2
        * size**3
        / _seconds_of_product(size, dtype, device)
        / 1e12
        for dtype in dtypes
    }
    copied = 2 * 4 * count / _seconds_of_copy(count, device)
    return {"copy_gigabytes_per_second": copied / 1e9, **products}


def _identity(section: str, record: Record) -> str:
    return json.dumps([record[field] for field in _IDENTITY[section]])


def _seconds_of_copy(count: int, device: str) -> float:
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return _least_seconds(lambda: target.copy_(source), device)


def _seconds_of_product(size: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return _least_seconds(lambda: a @ b, device)


def _least_seconds(call: Callable[[], Tensor], device: str) -> float:
    """Of many calls, since what else runs on the machine can only make one longer."""
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
