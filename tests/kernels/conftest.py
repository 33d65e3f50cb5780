"""Tests of kernels: what torch allocates starts as NaN, and those that need a GPU are skipped without one."""

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic mode asks of CUDA


def pytest_collection_modifyitems(items):
    if not HAS_GPU:
        skip = pytest.mark.skip(reason="no CUDA or ROCm device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """Whatever an op forgets to write fails its test."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """torch.compile counts its compilations of a function across tests, and gives up at eight."""
    torch._dynamo.reset()


@pytest.fixture
def bfloat16_products(monkeypatch):
    """Triton's interpreter multiplies the bits of bfloat16 as if they were integers; float32 holds them exactly."""
    if HAS_GPU:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    multiply = builder.create_dot

    def widened(self, handle):
        return self.create_fp_ext(handle, tl.float32) if handle.dtype == tl.bfloat16 else handle

    def create_dot(self, a, b, *rest):
        return multiply(self, widened(self, a), widened(self, b), *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)
