"""Distil large multilingual encoders into small ones: corpus, teacher, student, objective, loop."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("comet-distill")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
