"""Distil large multilingual encoders into small ones: corpus, teacher, student, objective, loop."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comet.classifier import Classifier

try:
    __version__ = version("comet-distill")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the classifier when it is first asked for, as torch and transformers take seconds."""
    if name == "Classifier":
        from comet.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
