"""Head-averaged attention probabilities and their gradient on a GPU: which kernels run, and what they are given.

Rows of keys that fit in registers take the kernels of `short_kernels.py`, longer ones those of `kernels.py` and
`gradient_kernels.py`. The row statistics lse [B, H, S] are the same either way, so forward and backward choose alone.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton

from comet_kernels.ops import launch
from comet_kernels.ops.mean_attention import gradient_kernels, kernels, options, short_kernels
from comet_kernels.ops.mean_attention.options import LOG2_E


def _bytes_of(mask: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    """The mask as uint8, or any tensor for a kernel that will not look at it."""
    return otherwise if mask is None else mask.contiguous().view(torch.uint8)


def tile_constants(
    query: torch.Tensor, mask: torch.Tensor | None, strides: Iterable[int]
) -> dict[str, Any]:
    """`options.constants` of these arguments; `strides` are those within a tile: others only meet 64-bit numbers."""
    # Times 256, the most positions or columns of a tile, still fits 31 bits.
    wide = max(strides) >= 1 << 22
    kind = options.products(query)
    return options.constants(kind, query.shape[-1], masked=mask is not None, wide=wide)


def forward(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map [B, S, S] and the base-2 row statistics [B, H, S], float32."""
    batch, heads, sequence, head_size = query.shape
    attention = query.new_empty(batch, sequence, sequence, dtype=torch.float32)
    lse = query.new_empty(batch, heads, sequence, dtype=torch.float32)
    if batch * heads == 0:
        return attention.zero_(), lse
    rows = (query, key, _bytes_of(mask, otherwise=lse), lse)
    sizes = (heads, sequence, scale * LOG2_E, *query.stride(), *key.stride())
    fixed = tile_constants(query, mask, (*query.stride()[2:], *key.stride()[2:]))
    device, kind = query.device, options.products(query)
    arch = launch.architecture(device)

    def tiles(o: launch.Options) -> int:
        return triton.cdiv(sequence, o["BLOCK_Q"])

    name = options.row_class(options.ROW_MAP, head_size, kind, sequence, arch)
    if name is not None:
        fixed["KEYS"] = options.row_length(sequence)
        launch.launch(
            short_kernels.row_map_kernel,
            lambda o: (batch * tiles(o),),
            (*rows, attention, *sizes),
            fixed,
            options.ROW_MAP,
            name,
            device,
        )
        return attention, lse
    name = options.shape_class(head_size, kind)
    launch.launch(
        kernels.statistics_kernel,
        lambda o: (batch * heads * tiles(o),),
        (*rows, *sizes),
        fixed,
        options.FORWARD,
        name,
        device,
    )
    launch.launch(
        kernels.map_kernel,
        lambda o: (batch * tiles(o) * triton.cdiv(sequence, o["BLOCK_K"]),),
        (*rows, attention, *sizes),
        fixed,
        options.FORWARD,
        name,
        device,
    )
    return attention, lse


def backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    lse: torch.Tensor,
    scale: float,
    needs: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dQ and dK in the inputs' dtype and layout, each only if needed. gradient: float32 [B, S, S], any strides."""
    query_gradient = torch.empty_like(query) if needs[0] else None
    key_gradient = torch.empty_like(key) if needs[1] else None
    batch, heads, sequence, head_size = query.shape
    if batch * heads == 0:
        return query_gradient, key_gradient
    device, kind = query.device, options.products(query)
    arch = launch.architecture(device)
    inputs = (query, key, _bytes_of(mask, otherwise=lse), lse, gradient)
    sizes = (heads, sequence, scale * LOG2_E)
    slope = scale / heads
    strides = (*query.stride(), *key.stride(), *gradient.stride())
    within = [*query.stride()[2:], *key.stride()[2:], *gradient.stride()[1:]]
    for found in (query_gradient, key_gradient):
        within += () if found is None else found.stride()[2:]
    fixed = tile_constants(query, mask, within)
    of_products = options.gradient_constants(kind, query.dtype, hip=torch.version.hip is not None)

    name = options.row_class(options.ROW_GRADIENT, head_size, kind, sequence, arch)
    if name is not None:
        steps = [(0,) * 4 if g is None else g.stride() for g in (query_gradient, key_gradient)]
        launch.launch(
            short_kernels.row_gradient_kernel,
            lambda o: (batch * heads,),
            (*inputs, query_gradient, key_gradient, *sizes, slope, *strides, *steps[0], *steps[1]),
            {**fixed, **of_products, "KEYS": options.row_length(sequence)},
            options.ROW_GRADIENT,
            name,
            device,
        )
        return query_gradient, key_gradient

    name = options.shape_class(head_size, kind)
    fixed["PAIR"] = options.in_pairs(arch, name)
    groups = batch * triton.cdiv(heads, 2 if fixed["PAIR"] else 1)

    def grid(block: str) -> Callable[[launch.Options], tuple[int]]:
        return lambda o: (groups * triton.cdiv(sequence, o[block]),)

    delta = torch.empty_like(lse)
    launch.launch(
        gradient_kernels.delta_kernel,
        grid("BLOCK_Q"),
        (*inputs, delta, *sizes, *strides),
        fixed,
        options.QUERY_GRADIENT,
        name,
        device,
    )
    for kernel, block, table, out in (
        (gradient_kernels.query_gradient_kernel, "BLOCK_Q", options.QUERY_GRADIENT, query_gradient),
        (gradient_kernels.key_gradient_kernel, "BLOCK_K", options.KEY_GRADIENT, key_gradient),
    ):
        if out is not None:
            arguments = (*inputs, delta, out, *sizes, slope, *strides, *out.stride())
            launch.launch(
                kernel, grid(block), arguments, {**fixed, **of_products}, table, name, device
            )
    return query_gradient, key_gradient
