"""Head-averaged attention probabilities in plain torch: the definition, the tests' oracle, the unfused path."""

import torch


def mean_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention probabilities averaged over heads.

        A[b, i, j] = (1/H) Σ_h softmax_j( query[b, h, i] · key[b, h, j] · scale )

    Holds B·H·S·S numbers several times over.

    Args:
        query: [B, H, S, D], any floating dtype.
        key: [B, H, S, D].
        mask: [B, S] bool, true on real tokens; the softmax runs over real keys, rows and columns of
            padding are 0. None means that every token is real.
        scale: factor on the dot products; D ** -0.5 by default.

    Returns:
        [B, S, S] in float32, in float64 for float64 inputs.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask is not None:
        # Whatever padding holds, NaN included, must not reach a product, where 0 · NaN would be NaN.
        real = mask[:, None, :, None]
        query, key = torch.where(real, query, 0), torch.where(real, key, 0)
    scores_BHSS = (query @ key.transpose(-1, -2)).to(precision) * scale
    if mask is None:
        return scores_BHSS.softmax(-1).mean(1)
    # The smallest finite number, not −∞: a sequence of padding alone would give NaN, also in the gradient.
    lowest = torch.finfo(precision).min
    probabilities_BHSS = scores_BHSS.masked_fill(~mask[:, None, None, :], lowest).softmax(-1)
    pair_BSS = mask[:, :, None] & mask[:, None, :]
    return torch.where(pair_BSS, probabilities_BHSS.mean(1), 0)
