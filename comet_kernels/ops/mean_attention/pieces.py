"""Head-averaged attention probabilities and their gradient in plain torch, in pieces: for devices without kernels.

A piece is some samples with all heads or, where one sample is too much, some query rows of it, so that every row of the
map has one piece that writes it. Beyond the output only two buffers of one piece and float32 copies of its samples
exist, small enough for a cache. The formulas are those of `kernels.py`; no statistics are kept, since a softmax of
torch's is as fast as one from a known log-sum-exp.
"""

from collections.abc import Iterator

import torch

from comet_kernels.ops import launch

# Float32 numbers of one piece, all heads and both buffers together.
PIECE_BYTES = 4 << 20


def _pieces(query: torch.Tensor) -> tuple[list[slice], list[slice], torch.Tensor]:
    """Samples by group, query rows by piece, and room [2, largest piece] for two numbers per head, row and key."""
    batch, heads, sequence, _ = query.shape
    row_bytes = 2 * 4 * heads * sequence
    rows = max(1, min(sequence, PIECE_BYTES // row_bytes))
    samples = max(1, min(batch, PIECE_BYTES // (row_bytes * sequence)))
    room = query.new_empty(2, samples * heads * rows * sequence, dtype=torch.float32)
    return _slices(batch, samples), _slices(sequence, rows), room


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _groups(
    groups: list[slice],
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """scale · Q and K [G, H, S, D] of some samples in float32 with 0 in place of padding, and where that is [G, S]."""
    room = query.new_empty(2, *query[groups[0]].shape, dtype=torch.float32)
    for samples in groups:
        query_GHSD, key_GHSD = room[:, : len(query[samples])]
        query_GHSD.copy_(query[samples]).mul_(
            scale
        )  # a product of 16-bit numbers would be rounded to 16 bits
        key_GHSD.copy_(key[samples])
        padding_GS = None if mask is None else ~mask[samples]
        if padding_GS is not None:
            query_GHSD.masked_fill_(padding_GS[:, None, :, None], 0)
            key_GHSD.masked_fill_(padding_GS[:, None, :, None], 0)
        yield samples, query_GHSD, key_GHSD, padding_GS


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The products of every sample and head; all are contiguous but for rows left out and a transposition."""
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.flatten(0, 1))
    return out


def _probabilities(
    query_GHRD: torch.Tensor,
    key_GHSD: torch.Tensor,
    padding_GS: torch.Tensor | None,
    room: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """P [G, H, rows, S] of a piece, NaN where all keys are padding, and the other buffer in that shape."""
    shape = (*query_GHRD.shape[:3], key_GHSD.shape[2])
    scores_GHRS, probabilities_GHRS = (
        buffer[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape) for buffer in room
    )
    _product(query_GHRD, key_GHSD.transpose(2, 3), out=scores_GHRS)
    if padding_GS is not None:
        scores_GHRS.masked_fill_(padding_GS[:, None, None], -float("inf"))
    torch.softmax(scores_GHRS, -1, out=probabilities_GHRS)
    return probabilities_GHRS, scores_GHRS


def forward(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The map [B, S, S] in float32."""
    batch, heads, sequence, _ = query.shape
    attention = query.new_empty(batch, sequence, sequence, dtype=torch.float32)
    if batch * heads == 0:
        return attention.zero_()
    groups, pieces, room = _pieces(query)
    with launch.without_autocast(query.device):
        for samples, query_GHSD, key_GHSD, padding_GS in _groups(groups, query, key, mask, scale):
            out_GSS = attention[samples]
            for rows in pieces:
                found_GHRS, _ = _probabilities(query_GHSD[:, :, rows], key_GHSD, padding_GS, room)
                torch.mean(found_GHRS, 1, out=out_GSS[:, rows])
            if padding_GS is not None:
                out_GSS.masked_fill_(padding_GS[:, :, None] | padding_GS[:, None], 0)
    return attention


def backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    needs: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dQ and dK in the inputs' dtype and layout, each only if needed. gradient: [B, S, S], any strides."""
    batch, heads = query.shape[:2]
    query_gradient = torch.empty_like(query) if needs[0] else None
    key_gradient = torch.empty_like(key) if needs[1] else None
    if batch * heads == 0:
        return query_gradient, key_gradient
    groups, pieces, room = _pieces(query)
    with launch.without_autocast(query.device):
        for samples, query_GHSD, key_GHSD, padding_GS in _groups(groups, query, key, mask, scale):
            key_sum = torch.zeros_like(key_GHSD).flatten(0, 1)
            for rows in pieces:
                query_GHRD = query_GHSD[:, :, rows]
                found_GHRS, other_GHRS = _probabilities(query_GHRD, key_GHSD, padding_GS, room)
                gradient_GRS = gradient[samples, rows].float() / heads
                if padding_GS is not None:
                    padding_GRS = padding_GS[:, rows, None] | padding_GS[:, None]
                    found_GHRS.masked_fill_(padding_GRS[:, None], 0)
                    gradient_GRS.masked_fill_(padding_GRS, 0)
                # dS = P dA/H − P Δ, where Δ is the sum of a row of the first term.
                torch.mul(found_GHRS, gradient_GRS[:, None], out=other_GHRS)
                other_GHRS.addcmul_(found_GHRS, other_GHRS.sum(-1, keepdim=True), value=-1)
                if query_gradient is not None:
                    found_GHRD = torch.empty_like(query_GHRD)
                    _product(other_GHRS, key_GHSD, out=found_GHRD)
                    torch.mul(found_GHRD, scale, out=found_GHRD)
                    query_gradient[samples, :, rows] = found_GHRD
                if key_gradient is not None:
                    key_sum.baddbmm_(
                        other_GHRS.transpose(2, 3).flatten(0, 1), query_GHRD.flatten(0, 1)
                    )
            if key_gradient is not None:
                key_gradient[samples] = key_sum.view_as(key_GHSD)  # the scale came with the query
    return query_gradient, key_gradient
