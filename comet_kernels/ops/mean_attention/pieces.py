"""Head-averaged attention probabilities and their gradient in plain torch, in pieces: for devices without kernels.

A piece is some query rows of one sample with all heads, so that every row of the map has one piece that writes it, and
beyond the output only two buffers of one piece exist, small enough for a cache. The formulas are those of `kernels.py`;
no statistics are kept, since a softmax of torch's is as fast as one from a known log-sum-exp.
"""

from collections.abc import Iterator

import torch

from comet_kernels.ops import launch

# Float32 numbers of one piece, all heads and both buffers together.
PIECE_BYTES = 8 << 20


def _pieces(query: torch.Tensor) -> tuple[list[slice], torch.Tensor]:
    """Query rows by piece, and room [2, largest piece] for two numbers per head, row and key."""
    _, heads, sequence, _ = query.shape
    step = max(1, min(sequence, PIECE_BYTES // (2 * 4 * heads * sequence)))
    rows = [slice(i, min(i + step, sequence)) for i in range(0, sequence, step)]
    return rows, query.new_empty(2, heads * step * sequence, dtype=torch.float32)


def _samples(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """scale · Q and K [H, S, D] of each sample in float32 with 0 in place of padding, and where that is [S]."""
    for b in range(query.shape[0]):
        query_HSD, key_HSD = query[b].float() * scale, key[b].float()
        if mask is None:
            yield query_HSD, key_HSD, None
        else:
            padding_S = ~mask[b]
            query_HSD.masked_fill_(padding_S[:, None], 0)
            yield query_HSD, key_HSD.masked_fill(padding_S[:, None], 0), padding_S


def _probabilities(
    query_HRD: torch.Tensor,
    key_HSD: torch.Tensor,
    padding_S: torch.Tensor | None,
    room: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """P [H, rows, S] of a piece, NaN where all keys are padding, and the other buffer in that shape."""
    shape = (*query_HRD.shape[:2], key_HSD.shape[1])
    scores_HRS, probabilities_HRS = room[:, : shape[0] * shape[1] * shape[2]].view(2, *shape)
    torch.bmm(query_HRD, key_HSD.transpose(1, 2), out=scores_HRS)
    if padding_S is not None:
        scores_HRS.masked_fill_(padding_S, -float("inf"))
    torch.softmax(scores_HRS, -1, out=probabilities_HRS)
    return probabilities_HRS, scores_HRS


def forward(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The map [B, S, S] in float32."""
    batch, heads, sequence, _ = query.shape
    attention = query.new_empty(batch, sequence, sequence, dtype=torch.float32)
    if heads == 0:
        return attention.zero_()
    pieces, room = _pieces(query)
    with launch.without_autocast(query.device):
        for out_SS, sample in zip(attention, _samples(query, key, mask, scale), strict=True):
            query_HSD, key_HSD, padding_S = sample
            for rows in pieces:
                found_HRS, _ = _probabilities(query_HSD[:, rows], key_HSD, padding_S, room)
                torch.mean(found_HRS, 0, out=out_SS[rows])
            if padding_S is not None:
                out_SS.masked_fill_(padding_S[:, None] | padding_S, 0)
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
    heads = query.shape[1]
    query_gradient = torch.empty_like(query) if needs[0] else None
    key_gradient = torch.empty_like(key) if needs[1] else None
    if heads == 0:
        return query_gradient, key_gradient
    pieces, room = _pieces(query)
    with launch.without_autocast(query.device):
        for b, (query_HSD, key_HSD, padding_S) in enumerate(_samples(query, key, mask, scale)):
            key_sum_HSD = torch.zeros_like(key_HSD)
            for rows in pieces:
                found_HRS, other_HRS = _probabilities(query_HSD[:, rows], key_HSD, padding_S, room)
                gradient_RS = gradient[b, rows].float() / heads
                if padding_S is not None:
                    padding_RS = padding_S[rows, None] | padding_S
                    found_HRS.masked_fill_(padding_RS, 0)
                    gradient_RS.masked_fill_(padding_RS, 0)
                # Δ: each row's product of all heads' probabilities with its gradient.
                delta_RH1 = torch.bmm(found_HRS.transpose(0, 1), gradient_RS[:, :, None])
                torch.sub(gradient_RS, delta_RH1.transpose(0, 1), out=other_HRS).mul_(found_HRS)
                if query_gradient is not None:
                    query_gradient[b, :, rows] = torch.bmm(other_HRS, key_HSD).mul_(scale)
                if key_gradient is not None:
                    key_sum_HSD.baddbmm_(other_HRS.transpose(1, 2), query_HSD[:, rows])
            if key_gradient is not None:
                key_gradient[b] = key_sum_HSD  # the scale came with the query
    return query_gradient, key_gradient
