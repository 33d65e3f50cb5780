"""What a benchmark of an op consists of: cases, one set-up function, and the implementations that take its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

TEMPERATURE = 2.0  # of every token

Direction = Literal["forward", "backward", "both", "no-grad"]
DIRECTIONS: tuple[Direction, ...] = ("both", "forward", "backward", "no-grad")

Tensors = Mapping[str, Tensor]
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One size of an op, and what of it is timed.

    Attributes:
        sizes: by the letters of the op's documentation, as in `{"N": 512, "V": 250002}`.
        dtype: of the inputs.
        device: "cpu", or "cuda", which ROCm answers to as well.
        without: an optional input that is left out, such as "bias".
        constant: whether numbers that are random otherwise are all the same, which is quicker: for memory alone.
        direction: "forward" (what backward needs is kept), "backward" (alone), "both", or "no-grad": forward where
            nothing requires a gradient.
    """

    sizes: dict[str, int]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    without: str = ""
    direction: Direction = "both"
    constant: bool = False

    @property
    def dtype_name(self) -> str:
        """The dtype without torch's prefix."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def tracked(self) -> bool:
        """Whether inputs that are trained require a gradient."""
        return self.direction != "no-grad"

    @property
    def inputs(self) -> str:
        """What the tensors and the right result depend on: everything but the direction."""
        shape = "-".join(f"{letter}{size}" for letter, size in self.sizes.items())
        left_out = f"-no-{self.without}" if self.without else ""
        return f"{shape}-{self.dtype_name}-{self.device}{left_out}"

    def __str__(self) -> str:
        return f"{self.inputs}-{self.direction}"


def in_every_direction(*cases: Case) -> list[Case]:
    """Each case as it is timed forward and backward, either alone, and without gradients."""
    return [replace(case, direction=direction) for case in cases for direction in DIRECTIONS]


class Work(NamedTuple):
    """The least that one direction takes by the op's formula.

    Attributes:
        bytes: forward reads every input and writes the output; backward reads the inputs again and writes gradients.
        operations: additions and multiplications of the matrix products; 0 where there are none.
    """

    bytes: int
    operations: int


def work_of(case: Case, forward: Work, backward: Work) -> Work:
    """That of the case's direction. In "both" inputs count twice: little of them stays in a cache meanwhile."""
    if case.direction == "both":
        return Work(forward.bytes + backward.bytes, forward.operations + backward.operations)
    return backward if case.direction == "backward" else forward


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
        peer: whether it is what somebody else offers for the same: another library, or torch's compiler.
        why_not: why it is left out of a case, or None.
        compiles: whether its first call at a shape compiles, which takes time and memory of its own.
    """

    function: Callable[..., Tensor | tuple[Tensor, Tensor]]
    prepare: Callable[[Tensors], Tensors] = _as_they_are
    same_result: bool = True
    peer: bool = False
    why_not: Callable[[Case], str | None] = _always
    compiles: bool = False


@dataclass(frozen=True)
class Op:
    """An op under measurement.

    Attributes:
        name: as in `comet_kernels`.
        set_up: the tensors of a case, seeded; those that require a gradient get one.
        work: the least that a case takes in its direction.
        implementations: by name; "comet" is judged, "torch" is plain torch and the judge.
    """

    name: str
    set_up: Callable[[Case], Tensors]
    work: Callable[[Case], Work]
    implementations: dict[str, Implementation]


Measure = Callable[
    [Op, Case, str], None
]  # what the fixture `measure` does with one implementation of a case


class Recorded(NamedTuple):
    """A forward pass that waits for its backward.

    Attributes:
        output: with what autograd has kept for it.
        incoming: the output's gradient; None for a scalar's, which is 1.
        leaves: the tensors that require a gradient, by name.
    """

    output: Tensor
    incoming: Tensor | None
    leaves: Tensors


def forward(function: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: Tensors) -> Recorded:
    """The output; where no tensor requires a gradient, nothing is kept for one."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    with torch.set_grad_enabled(bool(leaves)):
        result = function(**tensors)
    output, incoming = result if isinstance(result, tuple) else (result, None)
    return Recorded(output, incoming, leaves)


def backward(recorded: Recorded) -> Found:
    """The output again, and the gradient of every tensor that requires one."""
    output, incoming, leaves = recorded
    gradients = torch.autograd.grad(output, list(leaves.values()), incoming) if leaves else ()
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def differentiate(
    function: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: Tensors
) -> Found:
    """Forward and backward: the output, and the gradient of every tensor that requires one."""
    return backward(forward(function, tensors))


def timed_part(
    direction: Direction,
    function: Callable[..., Tensor | tuple[Tensor, Tensor]],
    tensors: Tensors,
) -> Callable[[], object]:
    """What is timed, as a call that can be made once; what has to come before it is done here.

    Args:
        direction: of the case.
        function: of an implementation.
        tensors: that it takes.
    """
    if direction == "backward":
        recorded = forward(function, tensors)
        return lambda: backward(recorded)
    if direction == "both":
        return lambda: differentiate(function, tensors)
    return lambda: forward(function, tensors)


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
    """Normal numbers in the case's dtype and on its device; they require a gradient unless the case is without."""
    tensor = torch.empty(shape, dtype=case.dtype, device=case.device)
    if case.constant:
        tensor.fill_(scale)
    else:
        tensor.normal_(std=scale)
    return tensor.requires_grad_(grad and case.tracked)
