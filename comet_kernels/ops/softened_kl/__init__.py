"""Temperature-softened KL divergence between teacher and student logits, and the same straight from hidden states."""

from comet_kernels.ops.softened_kl.linear import linear_softened_kl
from comet_kernels.ops.softened_kl.op import softened_kl

__all__ = ["linear_softened_kl", "softened_kl"]
