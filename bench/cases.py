"""What a benchmark of an op consists of: cases, one set-up function, and the implementations that take its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TEMPERATURE = 2.0  # of every token

Tensors = Mapping[str, Tensor]
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One size of an op, forward and backward.

    Attributes:
        sizes: by the letters of the op's documentation, as in `{"N": 512, "V": 250002}`.
        dtype: of the inputs.
        device: "cpu", or "cuda", which ROCm answers to as well.
        without: "backward" where nothing requires a gradient, or an optional input that is left out, such as "bias".
    """

    sizes: dict[str, int]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    without: str = ""

    @property
    def dtype_name(self) -> str:
        """The dtype without torch's prefix."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def backward(self) -> bool:
        """Whether gradients are computed."""
        return self.without != "backward"

    def __str__(self) -> str:
        shape = "-".join(f"{letter}{size}" for letter, size in self.sizes.items())
        left_out = f"-no-{self.without}" if self.without else ""
        return f"{shape}-{self.dtype_name}-{self.device}{left_out}"


class Work(NamedTuple):
    """The least that a case takes by the op's formula.

    Attributes:
        bytes: forward reads every input and writes the output; backward reads the inputs again and writes gradients.
        operations: additions and multiplications of the matrix products; 0 where there are none.
    """

    bytes: int
    operations: int


def _as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def _always(case: Case) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """A way to compute an op.

    Attributes:
        function: takes the set-up's tensors by name; returns a scalar, or a tensor and its incoming gradient.
        prepare: makes of the set-up's tensors what `function` takes, outside of the timing; a `ValueError` of its
            says that the case does not fit this machine.
        same_result: whether it computes the op, and not only a part of it as a floor to compare with.
        why_not: why it is left out of a case, or None.
    """

    function: Callable[..., Tensor | tuple[Tensor, Tensor]]
    prepare: Callable[[Tensors], Tensors] = _as_they_are
    same_result: bool = True
    why_not: Callable[[Case], str | None] = _always


@dataclass(frozen=True)
class Op:
    """An op under measurement.

    Attributes:
        name: as in `comet_kernels`.
        set_up: the tensors of a case, seeded; those that require a gradient get one.
        work: the least that a case takes.
        implementations: by name; "comet" is judged, "torch" is plain torch and the judge.
    """

    name: str
    set_up: Callable[[Case], Tensors]
    work: Callable[[Case], Work]
    implementations: dict[str, Implementation]


Measure = Callable[
    [Op, Case, str], None
]  # what the fixture `measure` does with one implementation of a case


def differentiate(
    function: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: Tensors
) -> Found:
    """Forward and backward: the output, and the gradient of every tensor that requires one."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    result = function(**tensors)
    output, incoming = result if isinstance(result, tuple) else (result, None)
    gradients = torch.autograd.grad(output, list(leaves.values()), incoming) if leaves else ()
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def oracle(op: Op, tensors: Tensors) -> Found:
    """Plain torch in float32 on the same numbers."""
    wide = {
        name: tensor.detach().float().requires_grad_(tensor.requires_grad)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    return differentiate(op.implementations["torch"].function, wide)


def synchronize(device: str) -> None:
    """Wait for the device's queue, where it has one."""
    if device == "cuda":
        torch.cuda.synchronize()


def random(case: Case, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
    """Normal numbers in the case's dtype and on its device; they require a gradient in cases with a backward."""
    tensor = torch.empty(shape, dtype=case.dtype, device=case.device).normal_(std=scale)
    return tensor.requires_grad_(grad and case.backward)
