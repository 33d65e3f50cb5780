"""Builds comet_kernels._native from csrc with CMake and ninja; everything else about the package is in pyproject.toml.

Environment: COMET_CUDA = auto (compile the CUDA kernels if nvcc is found), 0 or 1; CXX, CUDACXX, CUDA_HOME,
CMAKE_CUDA_ARCHITECTURES and CMAKE_ARGS as for any CMake project; COMET_PYBIND11_INCLUDE = a folder with the headers of
pybind11, for machines where the package itself is missing (torch brings a copy in torch/include).
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def fail(line: str) -> None:
    """End the build with one line; SystemExit passes through setuptools without a traceback."""
    raise SystemExit(f"error: {line}")


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, then CUDA_HOME, then the PATH, then /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [
        os.environ.get("CUDACXX"),
        f"{home}/bin/nvcc" if home else None,
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
    ]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def cuda_compiler() -> str | None:
    """What COMET_CUDA asks for: the path of nvcc, or None to leave the CUDA kernels out."""
    wish = os.environ.get("COMET_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        fail(f"COMET_CUDA: got {wish!r}, expected auto, 0 or 1")
    nvcc = None if wish == "0" else find_nvcc()
    if wish == "1" and nvcc is None:
        fail("COMET_CUDA=1, but no nvcc: set CUDACXX or CUDA_HOME, or leave COMET_CUDA at auto")
    return nvcc


def pybind11_include() -> str:
    """The folder of pybind11's headers."""
    include = os.environ.get("COMET_PYBIND11_INCLUDE")
    if include is None and importlib.util.find_spec("pybind11"):
        import pybind11

        include = pybind11.get_include()
    if include is None or not Path(include, "pybind11", "pybind11.h").is_file():
        fail(
            f"no pybind11/pybind11.h in {include}: pip install pybind11, or set COMET_PYBIND11_INCLUDE"
        )
    return str(include)


def program(name: str) -> str:
    """A build tool: from the environment that runs this file (pip's isolated one included), or from the PATH."""
    beside = Path(sysconfig.get_path("scripts"), name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        fail(f"no {name} on the PATH: pip install {name}")
    return str(found)


class CMakeBuild(build_ext):
    """Configure and compile from nothing each time: a change of compiler or options can leave nothing stale behind."""

    def build_extension(self, ext: Extension) -> None:
        """Compile csrc and put the module where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder / "build.log"
        run(
            [program("cmake"), "-S", str(ROOT), "-B", str(folder), *self.options(target.parent)],
            log,
        )
        run([program("cmake"), "--build", str(folder), "--verbose"], log)
        if not target.is_file():
            fail(f"csrc compiled, but not into {target}; the log is {log}")

    def options(self, target: Path) -> list[str]:
        """What CMake is told."""
        nvcc = cuda_compiler()
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        return [
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DCOMET_PYBIND11_INCLUDE={pybind11_include()}",
            f"-DCOMET_VERSION={self.distribution.get_version()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCOMET_CUDA={'ON' if nvcc else 'OFF'}",
            *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if nvcc else []),
            *([f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"] if nvcc and architectures else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]


def run(command: list[str], log: Path) -> None:
    """Run a command, its output both shown and kept in the log."""
    with (
        log.open("a") as kept,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in (shlex.join(command) + "\n", *process.stdout):
            kept.write(line)
            print(line, end="", flush=True)
    if process.returncode != 0:
        fail(f"csrc was not built: the compiler's message is above, the log is {log}")


setup(
    ext_modules=[Extension("comet_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
