"""Which kernels run, with which tiles: tables by (architecture, shape class), and what the kernels are compiled with.

Nothing here has been measured. The choices follow from counts, per score (one of N = B·H·S²), with e bytes a number:

    kernels                                     products  exponentials  bytes from L2
    row_map_kernel                              1         1             e·D (1/BLOCK_Q + 1/S)
    statistics_kernel + map_kernel              2         2             e·D (1/BLOCK_Q + 1/BLOCK_Q + 1/BLOCK_K)
    row_gradient_kernel                         3         1             4 + 4·e·D / S
    delta_, query_ and key_gradient_kernel      5         3             3·4 / h + e·D (2/BLOCK_Q + 1/BLOCK_K)

A product is 2·D operations; dA takes 4 bytes a score and kernel, shared by the h = 2 heads of a PAIR. In µs, each as if
alone, on an H200 (990 TFLOP/s in bfloat16; 132 processors · 16 exponentials a clock · 1.75 GHz; 5.5 TB/s from L2) at
B = 32, H = 16, D = 64, e = 2 with the tiles of sm_90 below; rows of 512 keys do not fit in registers:

    S                                  128                  512                   2048
    row_map_kernel                     1.1 + 2.3 + 7.6
    statistics_kernel + map_kernel     2.2 + 4.5 + 4.6      35 + 73 + 73          560 + 1160 + 1170
    the same with tiles of 64 × 64     2.2 + 4.5 + 9.2      35 + 73 + 146         560 + 1160 + 2340
    row_gradient_kernel                3.3 + 2.3 + 12.2
    three gradient kernels, h = 2      5.4 + 6.8 + 13.7     87 + 109 + 220        1390 + 1740 + 3510
    the same with h = 1                5.4 + 6.8 + 22.9     87 + 109 + 366        1390 + 1740 + 5860

HBM at 4.8 TB/s needs 4, 21 and 168 µs for what forward must read and write once, 7, 35 and 224 µs backward.

So tiles are as large as registers allow, since L2 feeds a tile of 128 × 128 with half the bytes of one of 64 × 64, and
sums of two heads are worth their registers. At S = 128 both ways forward count alike, but tiles of 128 × 128 would be
32 programs for 132 processors, and 32 whole rows are 128 programs; at S = 512 one pass over 32 rows (4.25 bytes/score)
would win nothing. True float32 runs on the ordinary units at 59 TFLOP/s: at S = 128 a product is 18 µs, and only their
number counts.

The tables: "default" rows run on NVIDIA GPUs without rows of their own, among them sm_86, sm_89 and sm_120 with 99 KiB
of shared memory a program (sm_90 and sm_100: 227). Before Hopper a product's operands lie in registers, so default rows
are smaller and never in pairs. "gfx" rows are for AMD's GPUs with 64 KiB.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from comet_kernels.ops import launch

LOG2_E = math.log2(math.e)


def _tile(block_q: int, block_k: int, num_warps: int, num_stages: int) -> launch.Options:
    return {
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def _rows(block_q: int, num_warps: int, num_stages: int) -> launch.Options:
    return {"BLOCK_Q": block_q, "num_warps": num_warps, "num_stages": num_stages}


# statistics_kernel and map_kernel.
FORWARD: launch.Table = {
    ("default", "half-64"): _tile(128, 128, 8, 3),
    ("default", "half-128"): _tile(128, 64, 8, 2),
    ("default", "half-256"): _tile(64, 64, 8, 1),
    ("default", "tf32-64"): _tile(64, 64, 4, 2),
    ("default", "tf32-128"): _tile(64, 64, 8, 1),
    ("default", "tf32-256"): _tile(32, 32, 8, 1),
    ("default", "ieee-64"): _tile(32, 64, 8, 1),
    ("default", "ieee-128"): _tile(32, 32, 8, 1),
    ("default", "ieee-256"): _tile(16, 32, 8, 1),
    ("sm_90", "half-128"): _tile(128, 128, 8, 2),
    ("sm_90", "half-256"): _tile(128, 64, 8, 2),
    ("sm_90", "tf32-64"): _tile(128, 64, 8, 2),
    ("sm_90", "tf32-128"): _tile(128, 64, 8, 2),
    ("sm_90", "tf32-256"): _tile(64, 64, 8, 1),
    ("gfx", "half-64"): _tile(64, 64, 4, 2),
    ("gfx", "half-128"): _tile(64, 64, 4, 1),
    ("gfx", "half-256"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-64"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-128"): _tile(32, 32, 8, 1),
    ("gfx", "ieee-256"): _tile(16, 32, 4, 1),
}
# delta_kernel and query_gradient_kernel.
QUERY_GRADIENT: launch.Table = {
    ("default", "half-64"): _tile(128, 32, 8, 2),
    ("default", "half-128"): _tile(64, 32, 8, 2),
    ("default", "half-256"): _tile(32, 32, 8, 1),
    ("default", "tf32-64"): _tile(32, 32, 4, 2),
    ("default", "tf32-128"): _tile(32, 32, 8, 1),
    ("default", "tf32-256"): _tile(32, 32, 8, 1),
    ("default", "ieee-64"): _tile(32, 64, 8, 1),
    ("default", "ieee-128"): _tile(16, 16, 8, 1),
    ("default", "ieee-256"): _tile(16, 16, 8, 1),
    ("sm_90", "half-64"): _tile(128, 32, 8, 3),
    ("sm_90", "half-128"): _tile(64, 64, 8, 2),
    ("sm_90", "half-256"): _tile(64, 16, 8, 2),
    ("sm_90", "tf32-64"): _tile(64, 64, 8, 2),
    ("sm_90", "tf32-128"): _tile(64, 32, 8, 2),
    ("gfx", "half-64"): _tile(64, 32, 4, 2),
    ("gfx", "half-128"): _tile(64, 32, 4, 1),
    ("gfx", "half-256"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-64"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-128"): _tile(16, 32, 8, 1),
    ("gfx", "ieee-256"): _tile(16, 32, 4, 1),
}
# key_gradient_kernel.
KEY_GRADIENT: launch.Table = {
    ("default", "half-64"): _tile(32, 128, 8, 2),
    ("default", "half-128"): _tile(32, 64, 8, 2),
    ("default", "half-256"): _tile(32, 32, 8, 1),
    ("default", "tf32-64"): _tile(32, 32, 4, 2),
    ("default", "tf32-128"): _tile(32, 32, 8, 1),
    ("default", "tf32-256"): _tile(32, 32, 8, 1),
    ("default", "ieee-64"): _tile(32, 64, 8, 1),
    ("default", "ieee-128"): _tile(16, 16, 8, 1),
    ("default", "ieee-256"): _tile(16, 32, 8, 1),
    ("sm_90", "half-64"): _tile(16, 128, 8, 2),
    ("sm_90", "half-256"): _tile(16, 64, 8, 2),
    ("sm_90", "tf32-64"): _tile(32, 64, 8, 2),
    ("sm_90", "tf32-128"): _tile(32, 64, 8, 2),
    ("gfx", "half-64"): _tile(32, 64, 4, 2),
    ("gfx", "half-128"): _tile(32, 64, 4, 1),
    ("gfx", "half-256"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-64"): _tile(32, 32, 4, 1),
    ("gfx", "ieee-128"): _tile(16, 32, 8, 1),
    ("gfx", "ieee-256"): _tile(16, 32, 4, 1),
}
# row_map_kernel, for rows of at most 128 or 256 keys.
ROW_MAP: launch.Table = {
    ("default", "half-64-128"): _rows(32, 4, 3),
    ("default", "half-64-256"): _rows(32, 8, 2),
    ("default", "half-128-128"): _rows(32, 4, 2),
    ("default", "half-128-256"): _rows(32, 8, 1),
    ("default", "half-256-128"): _rows(32, 8, 1),
    ("default", "tf32-64-128"): _rows(32, 4, 2),
    ("default", "tf32-64-256"): _rows(32, 8, 2),
    ("default", "tf32-128-128"): _rows(32, 8, 1),
    ("default", "ieee-64-128"): _rows(16, 8, 1),
    ("sm_90", "half-64-256"): _rows(64, 8, 3),
    ("sm_90", "half-128-256"): _rows(64, 8, 2),
    ("gfx", "half-64-128"): _rows(32, 4, 2),
    ("gfx", "half-64-256"): _rows(32, 8, 1),
    ("gfx", "half-128-128"): _rows(32, 4, 1),
    ("gfx", "ieee-64-128"): _rows(16, 8, 1),
}
# row_gradient_kernel.
ROW_GRADIENT: launch.Table = {
    ("default", "half-64-128"): _rows(16, 8, 1),
    ("default", "ieee-64-128"): _rows(16, 8, 1),
    ("sm_90", "half-64-128"): _rows(32, 8, 2),
    ("sm_90", "half-64-256"): _rows(16, 8, 2),
    ("sm_90", "half-128-128"): _rows(32, 8, 1),
    ("sm_90", "tf32-64-128"): _rows(32, 8, 1),
    ("gfx", "half-64-128"): _rows(32, 4, 1),
}

# Nothing is known of sm_100 yet but that it has sm_90's shared memory.
for table in (FORWARD, QUERY_GRADIENT, KEY_GRADIENT, ROW_MAP, ROW_GRADIENT):
    table.update({("sm_100", name): row for (arch, name), row in table.items() if arch == "sm_90"})
FORWARD["sm_100", "half-64"] = _tile(128, 64, 8, 3)
FORWARD["sm_100", "half-128"] = _tile(128, 64, 8, 2)
ROW_MAP["sm_100", "half-128-256"] = _rows(32, 8, 1)


def products(query: torch.Tensor) -> str:
    """How float products run: "half" for 16-bit inputs, else "tf32" where torch allows it, else "ieee"."""
    if query.dtype != torch.float32:
        return "half"
    return "tf32" if launch.products_in_tf32(query.device) else "ieee"


def shape_class(head_size: int, kind: str) -> str:
    """The table's second key: kind of product and the largest D it covers."""
    return f"{kind}-{next(d for d in (64, 128, 256) if head_size <= d)}"


def has_row(table: launch.Table, name: str, arch: str) -> bool:
    """Whether a table says how a shape class runs: "default" rows are for NVIDIA's GPUs, and the CPU's interpreter."""
    return any((key, name) in table for key in (arch, "gfx" if arch[:3] == "gfx" else "default"))


def row_class(
    table: launch.Table, head_size: int, kind: str, sequence: int, arch: str
) -> str | None:
    """The second key of a table of whole rows of keys; None where it has no row for so many."""
    name = f"{shape_class(head_size, kind)}-{128 if sequence <= 128 else 256}"
    return name if sequence <= 256 and has_row(table, name, arch) else None


def row_length(sequence: int) -> int:
    """KEYS of the kernels of whole rows: a power of two, so that few are ever compiled."""
    return max(64, triton.next_power_of_2(sequence))


def in_pairs(arch: str, name: str) -> bool:
    """PAIR of the gradient kernels: whether two heads' sums and operands fit in the registers of a program."""
    return name == "half-64" and arch in ("sm_90", "sm_100")


def constants(kind: str, head_size: int, *, masked: bool, wide: bool = False) -> dict[str, Any]:
    """What every kernel is compiled with beside the table's options."""
    return {
        "HAS_MASK": masked,
        "D": head_size,
        "BLOCK_D": max(16, triton.next_power_of_2(head_size)),
        "WIDE": wide,
        "PRECISION": "ieee" if kind == "half" else kind,
    }


def gradient_constants(kind: str, dtype: torch.dtype, *, hip: bool) -> dict[str, Any]:
    """How products of dS run.

    dS is far below 1e-6: beneath what float16 can hold, so its products take float32's range. TF32 keeps all of
    float16's mantissa.
    """
    if dtype == torch.float16:
        return {"GRADIENT_DTYPE": tl.float32, "GRADIENT_PRECISION": "ieee" if hip else "tf32"}
    return {
        "GRADIENT_DTYPE": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "GRADIENT_PRECISION": "ieee" if kind == "half" else kind,
    }
