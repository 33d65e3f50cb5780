"""What needs every logit of a token, without the logits of all tokens at once.

Logits are a product `hidden · weightᵀ + bias` with as many columns as the vocabulary has pieces. Where no fused op
gives what is asked for, they are multiplied out for some tokens at a time, as many as a budget of bytes allows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from comet_kernels.ops.softened_kl.linear_pieces import rows_per_piece


class FactoredLogits(NamedTuple):
    """Logits `[N, V]` that are not multiplied out.

    Attributes:
        hidden: `[N, E]`.
        weight: `[V, E]`.
        bias: `[V]`, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def at(self, rows: Tensor | slice) -> "FactoredLogits":
        """Those of some tokens."""
        return self._replace(hidden=self.hidden[rows])

    def multiplied(self) -> Tensor:
        """`[N, V]`, in float32 at least; inside autocast the product runs in its dtype."""
        logits_NV = nn.functional.linear(self.hidden, self.weight, self.bias)
        return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))

    def pieces(self, copies: int) -> Iterator[slice]:
        """Tokens whose logits exist together, in float32 and `copies` times over."""
        row_bytes = 4 * copies * len(self.weight)
        step = rows_per_piece(1, row_bytes)  # as if for one row: there may be any number of pieces
        for start in range(0, len(self.hidden), step):
            yield slice(start, start + step)


@torch.no_grad()
def entropy(logits: FactoredLogits) -> Tensor:
    """H_n = −Σ_v p_nv log p_nv with p = softmax(logits), in nats (Shannon, 1948); `[N]`, a constant."""
    found = [
        torch.special.entr(logits.at(piece).multiplied().softmax(-1)).sum(-1)
        for piece in logits.pieces(copies=4)
    ]
    return torch.cat(found) if found else logits.hidden.new_zeros(0, dtype=torch.float32)


def cross_entropy_sum(logits: FactoredLogits, labels_N: Tensor) -> Tensor:
    """−Σ_n log softmax(logits_n)[label_n], masked language modelling's (Devlin et al., 2019).

    Logits of a piece are computed again for its gradient instead of being kept.

    Args:
        logits: of the masked tokens.
        labels_N: `[N]` int64, the pieces that were there.

    Returns:
        A scalar; 0, with gradients of 0, where there is no token.
    """
    # one piece at least, if of no token: the head must get a gradient
    pieces = list(logits.pieces(copies=3)) or [slice(0)]
    summed = [
        checkpoint(_cross_entropy, logits.at(piece), labels_N[piece], use_reentrant=False)
        for piece in pieces
    ]
    return torch.stack(summed).sum()


def _cross_entropy(logits: FactoredLogits, labels_N: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.multiplied(), labels_N, reduction="sum")
