"""How the Triton kernels read rows of logits: 16 bytes at once whatever V is, with a bias on the way.

A vocabulary such as 250,002 puts most rows off the 16-byte boundaries that wide loads need. Blocks of columns are
therefore counted from the boundary before a row's first column, if all sides lie alike.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl

from comet_kernels.ops.softened_kl.rows import NO_BIASES, Biases


@triton.jit
def first_column(row, stride, offset, VECTOR: tl.constexpr, SHIFTED: tl.constexpr):
    """How far behind a 16-byte boundary a row begins, in columns: where its column 0 stands in the first block."""
    if SHIFTED:
        return ((row * stride + offset) % VECTOR).to(tl.int32)
    else:
        return tl.full([], 0, tl.int32)


@triton.jit
def row_pointer(
    logits,
    row,
    stride,
    first,
    ALIGNED: tl.constexpr,
    SHIFTED: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Where the first block of a row begins; told that this is a boundary, the compiler loads 16 bytes at once."""
    if SHIFTED:
        return tl.multiple_of(logits + row * stride - first, 16)
    elif ALIGNED:
        return logits + tl.multiple_of(row * stride, VECTOR)
    else:
        return logits + row * stride


@triton.jit
def load(p_row, bias, o_v, HAS_BIAS: tl.constexpr):
    """A whole block of one side."""
    b_logits = tl.load(p_row + o_v).to(tl.float32)
    if HAS_BIAS:
        b_logits += tl.load(bias + o_v, eviction_policy="evict_last").to(tl.float32)
    return b_logits


@triton.jit
def load_edge(p_row, bias, o_v, m_v, other, HAS_BIAS: tl.constexpr):
    """A block of one side of which some columns are not the row's."""
    b_logits = tl.load(p_row + o_v, mask=m_v, other=other).to(tl.float32)
    if HAS_BIAS:
        b_logits += tl.load(bias + o_v, mask=m_v, other=0.0).to(tl.float32)
    return b_logits


def shape_class(student: torch.Tensor, teacher: torch.Tensor) -> str:
    """The tables' second key."""
    return "float" if max(student.itemsize, teacher.itemsize) == 4 else "half"


def wide_loads(*sides: torch.Tensor) -> dict[str, Any]:
    """Whether all sides' rows lie alike between 16-byte boundaries, if not on them, and how many numbers fit there."""
    vector = 16 // min(logits.itemsize for logits in sides)
    places = {
        (logits.data_ptr() // logits.itemsize % vector, logits.stride(0) % vector)
        for logits in sides
    }
    aligned = len(places) == 1
    return {"ALIGNED": aligned, "SHIFTED": aligned and places != {(0, 0)}, "VECTOR": vector}


def with_biases(loads: dict[str, Any], biases: Biases) -> dict[str, Any]:
    """The constants of a kernel that adds these biases, columns of which are counted from a row's own first."""
    if biases != NO_BIASES:
        loads = {**loads, "ALIGNED": loads["ALIGNED"] and not loads["SHIFTED"], "SHIFTED": False}
    student_bias, teacher_bias = biases
    return {
        **loads,
        "STUDENT_BIAS": student_bias is not None,
        "TEACHER_BIAS": teacher_bias is not None,
    }


def offset_of(student: torch.Tensor, vector: int) -> int:
    """How many numbers behind a 16-byte boundary the first one lies."""
    return student.data_ptr() // student.itemsize % vector


def bias_pointers(biases: Biases, otherwise: torch.Tensor) -> list[torch.Tensor]:
    """The biases, and any tensor for one that a kernel will not look at."""
    return [otherwise if bias is None else bias for bias in biases]
