"""Every shipped configuration of every Triton kernel compiles for GPUs that need not be there, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("compile_kernels.py")
PARTS = 2
# Bytes a program may share. NVIDIA: what the smallest supported GPUs (sm_86, sm_89, sm_120) offer; gfx942: 64 KiB.
SHARED = {"sm_80": 101376, "sm_90": 101376, "sm_100": 101376, "gfx942": 65536}


@pytest.fixture(scope="module")
def records():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = (
        "1"  # what every version has done; silences a warning of 3.9
    )
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, "--part", f"{part}/{PARTS}"],
            env=environment,
            cwd=SCRIPT.parents[2],
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


def test_every_kernel_compiles_for_every_target(records):
    kernels = {r["kernel"] for r in records}
    assert len(kernels) == 7
    assert {(r["kernel"], r["target"]) for r in records} == {
        (kernel, target) for kernel in kernels for target in SHARED
    }


def test_no_registers_spill_on_sm_90(records):
    spilled = [r for r in records if r["target"] == "sm_90" and r["spills"]]
    assert not spilled


def test_shared_memory_fits(records):
    assert not [r for r in records if r["shared"] > SHARED[r["target"]]]
