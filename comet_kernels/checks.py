"""Argument checks shared by the ops: one `ValueError` line that names the argument, what came and what was expected."""

import math

import torch
from torch.autograd import forward_ad

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def expect(condition: bool, argument: str, got: object, expected: str) -> None:
    """Raise `ValueError("argument: got …, expected …")` unless the condition holds."""
    if not condition:
        raise ValueError(f"{argument}: got {got}, expected {expected}")


def expect_floating(argument: str, tensor: torch.Tensor) -> None:
    """Require float32, bfloat16 or float16."""
    expect(
        tensor.dtype in FLOAT_DTYPES,
        argument,
        tensor.dtype,
        "float32, bfloat16 or float16",
    )


def expect_float32(**tensors: torch.Tensor) -> None:
    """Require what an op reads as it is: its public function converts, `torch.ops.comet` may be called without."""
    for argument, tensor in tensors.items():
        expect(tensor.dtype == torch.float32, argument, tensor.dtype, "torch.float32")


def refuse_forward_mode(op: str, *tensors: torch.Tensor | None) -> None:
    """Refuse tensors that carry a tangent, which an op would drop without a word.

    Raises:
        NotImplementedError: one does.
    """
    if forward_ad._current_level < 0:  # outside of any forward-mode differentiation
        return
    if any(tensor is not None and _has_tangent(tensor) for tensor in tensors):
        raise NotImplementedError(
            f"{op} has no forward-mode derivative (jvp, jacfwd, dual tensors): differentiate it by backward(), or take "
            f"comet_kernels.reference.{op}"
        )


def _has_tangent(tensor: torch.Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).tangent is not None


def expect_shape(argument: str, tensor: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Require an exact shape; `meaning` says it in words, such as "[B, S] of query"."""
    if tuple(tensor.shape) != shape:  # formatting a size would pin it under torch.compile
        expect(False, argument, f"shape {list(tensor.shape)}", f"{meaning} = {list(shape)}")


def expect_same_device(argument: str, tensor: torch.Tensor, other: torch.Tensor, of: str) -> None:
    """Require the device of another argument."""
    expect(
        tensor.device == other.device,
        argument,
        f"device {tensor.device}",
        f"the device of {of}, {other.device}",
    )


def expect_mask(
    mask: torch.Tensor, shape: tuple[int, ...], other: torch.Tensor, meaning: str, of: str
) -> None:
    """Require a boolean mask of a shape, on the device of another argument."""
    expect(mask.dtype == torch.bool, "mask", mask.dtype, "torch.bool")
    expect_shape("mask", mask, shape, meaning)
    expect_same_device("mask", mask, other, of)


def expect_positive(argument: str, number: float) -> None:
    """Require a finite number above zero."""
    expect(
        isinstance(number, (int, float)) and 0 < number < math.inf,
        argument,
        repr(number),
        "a finite number above 0",
    )
