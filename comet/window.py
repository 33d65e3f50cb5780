"""Sums of losses since the last logged line, kept on the device until they are asked for."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from comet.batch import StepLosses
from comet.processes import gathered, summed

_PREFIX = "window/"


class Window:
    """What happened since the last logged line, as far as this process has seen it.

    Attributes:
        steps: how many were taken, skipped ones not counted.
        skipped: how many were skipped.
        tokens: how many this process read.
    """

    def __init__(self) -> None:
        self.steps = self.skipped = self.tokens = 0
        self._shares: dict[str, Tensor] = {}  # of all processes together
        self._by_language: Tensor | None = None
        self._norm: Tensor | None = None  # the same on every process
        self._started = time.perf_counter()
        self._tokens_before = 0

    def add(self, losses: StepLosses, norm: Tensor, tokens: int) -> None:
        """Add a step: this process's share of the losses, and the norm of all gradients."""
        for name, value in {"loss": losses.total, **losses.terms}.items():
            self._shares[name] = _plus(self._shares.get(name), value)
        if losses.by_language is not None:
            self._by_language = _plus(self._by_language, losses.by_language)
        self._norm = _plus(self._norm, norm)
        self.tokens += tokens
        self.steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        stopped = time.perf_counter()
        yield
        self._started += time.perf_counter() - stopped

    def state(self, accelerator: Accelerator) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The sums over all processes, to be saved: tensors, and JSON."""
        tensors = summed(self._joint(), accelerator)
        if self._norm is not None:
            tensors["norm"] = self._norm
        rest = {
            "names": list(self._shares),  # in order, which a file of tensors does not keep
            "steps": self.steps,
            "skipped": self.skipped,
            "tokens": sum(gathered(self.tokens, accelerator)),
        }
        return {f"{_PREFIX}{name}": value for name, value in tensors.items()}, rest

    @staticmethod
    def restored(
        tensors: Mapping[str, Tensor], rest: Mapping[str, Any], accelerator: Accelerator
    ) -> "Window":
        """The window that `state` gave: the main process takes over the sums, the others hold zeros of their shape."""
        window = Window()
        window.steps, window.skipped = rest["steps"], rest["skipped"]
        part = int(accelerator.is_main_process)
        window.tokens = window._tokens_before = rest["tokens"] * part
        found = {
            name[len(_PREFIX) :]: value.to(accelerator.device)
            for name, value in tensors.items()
            if name.startswith(_PREFIX)
        }
        window._norm = found.pop("norm", None)
        found = {name: value * part for name, value in found.items()}
        window._by_language = found.pop("by_language", None)
        window._shares = {name: found[name] for name in rest["names"]}
        return window

    def metrics(self, accelerator: Accelerator, languages: tuple[str, ...]) -> dict[str, Any]:
        """Means over the window, of all processes: what a logged line says of it. Every process calls this.

        Returns:
            loss, its terms and the gradient norm per step; the first term (or the loss that has none) per token of
            each language, as `kd/hau`;
            `skipped` where steps were; `tokens` and `tokens_per_second`, both of all processes.
        """
        seconds = time.perf_counter() - self._started
        joint = summed(self._joint(), accelerator)
        read = gathered((self.tokens, self.tokens - self._tokens_before), accelerator)
        by_language = joint.pop("by_language", None)
        steps = max(self.steps, 1)
        found: dict[str, Any] = {name: value.item() / steps for name, value in joint.items()}
        if self._norm is not None:
            found["grad_norm"] = self._norm.item() / steps
        if by_language is not None:
            first = next((name for name in self._shares if name != "loss"), "loss")
            for language, total, count in zip(languages, *by_language.tolist(), strict=True):
                if count:
                    found[f"{first}/{language}"] = total / count
        if self.skipped:
            found["skipped"] = self.skipped
        found["tokens"] = sum(tokens for tokens, _ in read)
        found["tokens_per_second"] = round(sum(since for _, since in read) / seconds, 1)
        return found

    def _joint(self) -> dict[str, Tensor]:
        extra = {} if self._by_language is None else {"by_language": self._by_language}
        return {**self._shares, **extra}


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    value = value.detach().float()
    return value if total is None else total + value
