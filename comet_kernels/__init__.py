"""Fused ops for distilling encoders: usable without `comet`.

Each op has the same name and meaning in `comet_kernels.reference`, in plain torch.
"""

from comet_kernels.ops.factorized_projection import factorized_projection, projected_mse
from comet_kernels.ops.mean_attention import mean_attention
from comet_kernels.ops.softened_kl import linear_softened_kl, softened_kl

__all__ = [
    "factorized_projection",
    "linear_softened_kl",
    "mean_attention",
    "projected_mse",
    "softened_kl",
]
