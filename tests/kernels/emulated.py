"""csrc's CUDA compiled as C++ against the emulation in emulated_cuda, with tensors for arguments."""

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
EMULATION = ROOT / "tests" / "kernels" / "emulated_cuda"
CUDA_SOURCES = sorted((CSRC / "factorized_projection").glob("*.cu"))
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
PRECISIONS = {"float32": 0, "tf32": 1, "bfloat16": 2}


def compile_all(sources: list[Path], target: Path, *flags: str) -> Path:
    """Compile and link C++ and emulated CUDA into `target`, two files at a time."""

    def compiled(source: Path) -> str:
        result = target.parent / f"{target.name}-{source.parent.name}-{source.name}.o"
        command = [
            *(str(COMPILER), "-std=c++17", "-g1", "-fPIC", "-ffp-contract=off"),
            *("-fno-strict-aliasing", f"-I{EMULATION}", f"-I{CSRC}", *flags),
            *("-x", "c++", "-c", str(source), "-o", str(result)),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return str(result)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([str(COMPILER), *flags, *objects, "-o", str(target)], check=True)
    return target


class _Projection(ctypes.Structure):
    _fields_ = [
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("terms", "max_size", "batch", "size")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("map", "left", "right")]


def _address(tensor):
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


class Emulation:
    """The three functions on an emulated device whose blocks may have `shared_memory_limit` bytes of shared memory.

    Everything they write starts as NaN, and the workspace has exactly the size that they ask for.
    """

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.emulated_workspace_bytes.restype = ctypes.c_int64
        self.shared_memory_limit = 99 * 1024
        self.last_thread_first = False

    def forward(self, map, left, right, precision):
        output = torch.full_like(map, torch.nan)
        self._call("forward", map, left, right, (map, output), None, precision)
        return output

    def backward(self, gradient, map, left, right, precision, needs=(True, True, True)):
        found = self._rooms(map, left, right, needs)
        self._call("backward", map, left, right, (map, gradient), found, precision)
        return found

    def mse(
        self, student, teacher, left, right, mask, precision, needs=(True, True, True)
    ) -> tuple[torch.Tensor, ...]:
        found = self._rooms(student, left, right, needs)
        loss = torch.full((), torch.nan)
        tensors = (student, teacher, mask, loss)
        self._call("mse", student, left, right, tensors, found, precision)
        return loss, *found

    def _rooms(self, map, left, right, needs):
        return tuple(
            torch.full_like(tensor, torch.nan) if needed else None
            for tensor, needed in zip((map, left, right), needs, strict=True)
        )

    def _call(self, name, map, left, right, tensors, gradients, precision):
        batch, size, _ = map.shape
        terms, largest, _ = left.shape
        self.library.emulated_machine(self.shared_memory_limit, self.last_thread_first)
        needs = [g is not None for g in gradients or (None, None, None)]
        room = self.library.emulated_workspace_bytes(
            *(ctypes.c_int64(n) for n in (terms, batch, size)), *needs
        )
        assert room % 4 == 0
        workspace = torch.full((room // 4,), torch.nan)
        message = ctypes.create_string_buffer(500)
        projection = _Projection(left.data_ptr(), right.data_ptr(), terms, largest, batch, size)
        places = [] if gradients is None else [_Gradients(*map_addresses(gradients))]
        failed = getattr(self.library, f"emulated_{name}")(
            ctypes.byref(projection),
            *(_address(tensor) for tensor in tensors),
            *(ctypes.byref(place) for place in places),
            _address(workspace),
            PRECISIONS[precision],
            message,
            ctypes.c_size_t(500),
        )
        if failed:
            raise RuntimeError(message.value.decode())


def map_addresses(tensors):
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
