"""The ops in plain torch, under the same names: the definition, the test oracle, and the unfused path."""

from comet_kernels.ops.factorized_projection.reference import factorized_projection, projected_mse
from comet_kernels.ops.mean_attention.reference import mean_attention
from comet_kernels.ops.softened_kl.reference import linear_softened_kl, softened_kl

__all__ = [
    "factorized_projection",
    "linear_softened_kl",
    "mean_attention",
    "projected_mse",
    "softened_kl",
]
