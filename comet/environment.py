"""Where a run takes place: versions, hardware, the commit of the source, memory at its peak, the user's cache."""

import contextlib
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import comet
from comet.durable import locked, writing

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "numpy",
)
_COMPUTING = ("comet", "torch", "triton", "transformers", "tokenizers", "numpy")
STATUS = Path("/proc/self/status")
MEMORY = Path("/proc/meminfo")


_LAUNCHED = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not there."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def environment(processes: int = 1) -> dict[str, Any]:
    """Versions, commit and hardware, as a run records them.

    Args:
        processes: how many share the work.
    """
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "versions": {"python": platform.python_version(), "comet": comet.__version__}
        | versions(_PACKAGES),
        "commit": commit(),
        "hardware": hardware,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two environments can change the last bits of a result, as in `torch 2.13.0 (before: 2.9.0)`.

    Args:
        before: as `environment` gave it, also in an earlier version, which named less.
        now: likewise.
    """
    return [
        f"{name} {new or 'none'} (before: {old or 'none'})"
        for name, old, new in _pairs(before, now)
        if old != new
    ]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, then value before and now, of what both name."""
    old, new = before.get("versions") or {}, now.get("versions") or {}
    for name in _COMPUTING:
        if name in old and name in new:
            yield name, old[name], new[name]
    old, new = before.get("hardware") or {}, now.get("hardware") or {}
    for name in ("machine", "threads", "processes", "instructions"):
        if name in old and name in new:
            yield name, old[name], new[name]
    if old and new:  # a machine without a GPU does not name it
        yield "gpu", old.get("gpu"), new.get("gpu")


def environment_of_one() -> dict[str, str]:
    """The environment for a child process that is to run alone, without what a launcher of several set."""
    prefixes = ("TORCHELASTIC_", "ACCELERATE_")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHED and not name.startswith(prefixes)
    }


def cache_folder() -> Path:
    """Where what is made once is kept for other runs: `$COMET_CACHE`, else `comet` in the user's cache folder."""
    if given := os.environ.get("COMET_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "comet"
    except RuntimeError as error:
        raise ValueError(f"the cache: {error}; set COMET_CACHE to a folder") from error


@contextlib.contextmanager
def kept_in_cache(path: Path) -> Iterator[None]:
    """Hold the lock of something in the cache folder while it is made; waits for another process that makes it.

    Raises:
        UnwritableError: the cache cannot be written; the message names COMET_CACHE.
    """
    advice = "make room, or set COMET_CACHE to a folder that can be written"
    with writing(path, advice), locked(path.with_name(f".{path.name}.lock")):
        yield


def commit() -> str | None:
    """The commit that runs: COMET_COMMIT where the source came without its history, else git's, None outside of git."""
    given = os.environ.get("COMET_COMMIT")
    if given:
        return given
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return answer.stdout.strip() or None
    return None


def resident_bytes(field: str) -> int:
    """VmRSS, what this process holds, or VmHWM, the most it ever held, of Linux's status file."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def peak_resident_bytes() -> int:
    """The most this process ever had resident.

    Linux's own figure, where it is: `ru_maxrss` also counts what the parent had before it started this program.
    """
    if STATUS.exists():
        return resident_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int:
    """Memory that programs can still have: Linux's estimate, elsewhere all of the machine's."""
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024
    return machine_bytes()


def machine_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """What the processor is called."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
