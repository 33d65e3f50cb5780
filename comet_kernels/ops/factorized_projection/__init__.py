"""A sum of Kronecker products applied to attention maps, and its squared error against a teacher's maps."""

from comet_kernels.ops.factorized_projection.op import factorized_projection, projected_mse

__all__ = ["factorized_projection", "projected_mse"]
