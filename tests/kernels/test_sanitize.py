"""csrc's C++ under AddressSanitizer and UBSan, and the registers that nvcc gives its CUDA kernels."""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernels"
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"plain": [], "avx2": AVX2, "avx512": AVX512} if X86 else {"plain": []}


def compile_object(source: Path, folder: Path, name: str, *flags: str) -> Path:
    target = folder / f"{name}.o"
    subprocess.run(
        [
            *(str(COMPILER), "-std=c++17", "-O1", "-g1", "-ffp-contract=off"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            *(["-DCOMET_X86"] if X86 else []),
            *(f"-I{ROOT / 'csrc'}", f"-I{TESTS}", *flags),
            *("-x", "c++", "-c", str(source), "-o", str(target)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return target


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_sanitized_driver_finds_nothing(tmp_path):
    csrc = ROOT / "csrc"
    jobs = [
        (TESTS / "sanitize.cpp", "driver"),
        (csrc / "factorized_projection" / "cpu.cpp", "projection"),
        (csrc / "softened_kl" / "cpu.cpp", "kl"),
        (csrc / "cpu" / "instruction_set.cpp", "instruction_set"),
        (csrc / "cpu" / "team.cpp", "team"),
    ]
    for name, flags in INSTRUCTION_SETS.items():
        for source in ("softened_kl/cpu_blocks", "factorized_projection/cpu_product"):
            target = f"{Path(source).name}_{name}"
            jobs.append((csrc / f"{source}.cpp", target, f"-DCOMET_ISA={name}", *flags))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: compile_object(job[0], tmp_path, *job[1:]), jobs))
    driver = tmp_path / "driver"
    subprocess.run(
        [
            *(str(COMPILER), "-fsanitize=address,undefined", "-pthread"),
            *(*map(str, objects), "-o", str(driver)),
        ],
        check=True,
    )
    ran = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all right" in ran.stdout


def test_cuda_kernels_spill_no_registers():
    """As `pip install` compiled them; the log has every kernel once for each architecture."""
    log = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}" / "build.log"
    text = log.read_text(errors="replace") if log.is_file() else ""
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", text)
    if not kernels:
        pytest.skip("the CUDA kernels were not compiled here")
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert len(spills) == len(kernels) == len(set(kernels)) >= 10
    assert set(spills) == {("0", "0")}
