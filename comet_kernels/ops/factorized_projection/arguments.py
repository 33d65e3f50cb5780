"""Checks of the projection's arguments, and what the compiled extension is handed of them."""

import torch

from comet_kernels.checks import (
    expect,
    expect_floating,
    expect_mask,
    expect_same_device,
    expect_shape,
    refuse_forward_mode,
)

Needs = tuple[bool, bool, bool]  # of map, left and right
Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def check(op: str, name: str, map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Require square maps, factors of one shape that is not smaller, floats, and one device.

    Raises:
        ValueError: names the argument; `name` is that of `map`.
        NotImplementedError: one of them carries a forward-mode tangent; names the op.
    """
    refuse_forward_mode(op, map, left, right)
    expect(map.dim() == 3, name, f"{map.dim()} dimensions", "3: [B, S, S]")
    size, columns = map.shape[1:]
    expect(size == columns and size > 0, name, f"shape {list(map.shape)}", "square maps: [B, S, S]")
    expect_floating(name, map)
    expect(left.dim() == 3, "left", f"{left.dim()} dimensions", "3: [K, S_max, S_max]")
    terms, largest, columns = left.shape
    expect(
        terms > 0 and largest == columns, "left", f"shape {list(left.shape)}", "[K, S_max, S_max]"
    )
    expect_shape("right", right, (terms, largest, largest), "[K, S_max, S_max] of left")
    expect(size <= largest, name, f"S = {size}", f"at most S_max = {largest} of left")
    for argument, tensor in (("left", left), ("right", right)):
        expect_floating(argument, tensor)
        expect_same_device(argument, tensor, map, name)


def check_teacher(teacher_map: torch.Tensor, student_map: torch.Tensor) -> None:
    """Require a teacher's map like the student's."""
    expect_shape("teacher_map", teacher_map, tuple(student_map.shape), "[B, S, S] of student_map")
    expect_floating("teacher_map", teacher_map)
    expect_same_device("teacher_map", teacher_map, student_map, "student_map")


def check_mask(mask: torch.Tensor | None, student_map: torch.Tensor) -> None:
    """Require no mask, or one with a bool for each row of the student's map."""
    if mask is not None:
        expected = tuple(student_map.shape[:2])
        expect_mask(mask, expected, student_map, "[B, S] of student_map", "student_map")


def sizes(map: torch.Tensor, left: torch.Tensor) -> tuple[int, int, int, int]:
    """K, S_max, B and S."""
    return left.shape[0], left.shape[1], map.shape[0], map.shape[1]


def call(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[int, ...]:
    """The arguments with which the extension's functions on P(A) begin."""
    return map.data_ptr(), left.data_ptr(), right.data_ptr(), *sizes(map, left)


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def rooms(map: torch.Tensor, left: torch.Tensor, right: torch.Tensor, needs: Needs) -> Gradients:
    """Unwritten gradients, None where not needed."""
    first, second, third = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else None
        for tensor, needed in zip((map, left, right), needs, strict=True)
    )
    return first, second, third
