"""Loads the compiled extension `comet_kernels._native` when something first needs it.

Without it everything imports; the first call that needs it says how to build it.
"""

import functools
import importlib
import os
from types import ModuleType

import torch

# Not that of a forked child which loads the extension later: torch's threads stayed with its parent.
_PROCESS = os.getpid()
INTERFACE = 2  # that of csrc/bindings.cpp: what its functions take and return
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def library() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is not built, of another version, or does not load; the message says how to build it.
    """
    try:
        module = importlib.import_module("comet_kernels._native")
    except ImportError as error:
        raise RuntimeError(
            f"comet_kernels' C++ extension does not load ({error}): "
            "build it with `pip install -e .` in the source folder, which needs a C++17 compiler"
        ) from error
    found = getattr(module, "INTERFACE", 1)
    if found != INTERFACE:
        raise RuntimeError(
            f"comet_kernels' C++ extension is of another version of the source (interface {found}, expected "
            f"{INTERFACE}): build it again with `pip install -e .` in the source folder"
        )
    module.allow_team(_PROCESS)
    return module


@functools.cache
def has_cuda() -> bool:
    """Whether the extension is there and holds the CUDA kernels."""
    try:
        return bool(library().has_cuda())
    except RuntimeError:
        return False
