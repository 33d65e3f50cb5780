"""Attention probabilities averaged over heads, straight from queries and keys."""

from comet_kernels.ops.mean_attention.op import mean_attention

__all__ = ["mean_attention"]
