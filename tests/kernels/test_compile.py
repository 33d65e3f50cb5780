"""Every shipped configuration of every Triton kernel compiles for GPUs that need not be there, and fits them."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comet_kernels import ops
from comet_kernels.ops import launch

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
PARTS = 2
# KiB a program may share. sm_80 has 163, but it runs the tables' default rows, as do sm_86, sm_89 and sm_120 with 99.
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}


def shipped():
    """The names of all kernels there are."""
    modules = pkgutil.walk_packages(ops.__path__, f"{ops.__name__}.")
    inside = [vars(importlib.import_module(module.name)) for module in modules]
    return {name for names in inside for name in names if name.endswith("_kernel")}


def compiles(test):
    """About six minutes of one core when Triton's cache is empty, seconds after that."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


@pytest.fixture(scope="module")
def records():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = (
        "1"  # what every version has done; silences a warning of 3.9
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.kernel_resources", "--json", "--part", f"{part}/{PARTS}"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PARTS)
    ]
    found = []
    for process in running:
        out, error = process.communicate()
        assert process.returncode == 0, error[-2000:]
        found += json.loads(out)
    return found


@compiles
def test_every_kernel_compiles_for_every_target(records):
    kernels = {r["kernel"] for r in records}
    assert kernels == shipped()
    assert {(r["kernel"], r["target"]) for r in records} == {
        (kernel, target) for kernel in kernels for target in SHARED
    }


@compiles
def test_no_registers_spill_on_sm_90(records):
    spilled = [r for r in records if r["target"] == "sm_90" and r["spills"]]
    assert not spilled


@compiles
def test_shared_memory_fits(records):
    assert not [r for r in records if r["shared"] > SHARED[r["target"]] << 10]


@compiles
def test_logits_are_loaded_16_bytes_at_once(records):
    """A thread's share of a block, of both sides and of their biases."""
    found = {
        (r["target"], r["kernel"], r["case"]): r["wide_loads"]
        for r in records
        if r["kernel"] in ("chunk_kernel", "gradient_kernel")
    }
    assert len(found) >= 4 * 2 * 7
    for (target, kernel, case), loads in found.items():
        assert bool(loads) == ("unaligned" not in case)
        if "biased" in case:
            assert loads == 2 * found[target, kernel, case.replace(" biased", "")]


def test_options_of_an_architecture_its_family_or_any():
    table = {("default", "x"): {"A": 1}, ("gfx", "x"): {"A": 2}, ("sm_90", "x"): {"A": 3}}
    assert launch.lookup(table, "sm_90", "x") == {"A": 3}
    assert launch.lookup(table, "sm_120", "x") == {"A": 1}
    assert launch.lookup(table, "gfx1100", "x") == {"A": 2}
    with pytest.raises(KeyError):
        launch.lookup(table, "sm_90", "y")


def test_options_are_searched_only_on_request(monkeypatch):
    shipped = {"BLOCK_Q": 16, "num_warps": 4, "num_stages": 2}
    best = {"BLOCK_Q": 32, "num_warps": 4, "num_stages": 2}
    timed = []

    def milliseconds(run, options):
        timed.append(options)
        return 1.0 if options == best else 2.0

    class Kernel:
        def fn(self):
            pass

    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(launch, "_milliseconds", milliseconds)
    monkeypatch.setattr(launch, "_found", {})
    choose = (Kernel, {("default", "x"): shipped}, "x", torch.device("cuda"))
    assert launch._choose(*choose, print) == shipped
    monkeypatch.setenv("COMET_AUTOTUNE", "1")
    assert launch._choose(*choose, None) == shipped  # cannot be repeated
    assert not timed
    assert launch._choose(*choose, print) == best
    number = len(timed)
    assert launch._choose(*choose, None) == best
    assert len(timed) == number
    assert all(options["BLOCK_Q"] >= 16 for options in timed)
