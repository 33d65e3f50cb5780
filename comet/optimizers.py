"""Optimizers of a run: AdamW and, if asked for, Muon (Jordan et al., 2024) for the weight matrices of the layers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from comet.recipe import OptimisationRecipe


class Muon(torch.optim.Muon):
    """Muon whose iteration runs in a precision of choice.

    PyTorch's runs in bfloat16. That rounds gradients which differ in their last bit, such as those of one process and
    of two, to different numbers: 40 steps later weights differ by 1e-3 to 1e-2, in float32 by 4e-6.

    Args:
        parameters: matrices.
        lr: peak rate.
        weight_decay: of all of them.
        dtype: of the iteration.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(value.grad)
                momentum = state["momentum_buffer"].lerp_(value.grad, 1 - group["momentum"])
                update = value.grad.lerp(momentum, group["momentum"])
                update = orthogonalised(
                    update.to(self._dtype),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                value.mul_(1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * math.sqrt(max(1, value.shape[0] / value.shape[1]))
                value.add_(update, alpha=-rate)


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Move all singular values of a matrix near 1 by the quintic Newton-Schulz iteration of Jordan et al. (2024)."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if is_tall else matrix
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if is_tall else found


def make_optimizers(
    module: nn.Module, recipe: OptimisationRecipe
) -> dict[str, torch.optim.Optimizer]:
    """AdamW over all that is trained or, with a Muon rate, Muon over the layers' matrices and AdamW over the rest.

    Embeddings, the output embeddings and everything of one dimension stay with AdamW; vectors, biases and the
    attention projection, which starts as the identity, do not decay. Input embeddings may have a rate of their own.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    rate = recipe.muon_learning_rate
    muon = [] if rate is None else [name for name in trained if _is_layer_matrix(name, trained)]
    embeddings = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # by rate and decay
    for name, value in trained.items():
        if name in muon:
            continue
        own = recipe.embedding_learning_rate if id(value) in embeddings else None
        decay = recipe.weight_decay if _decays(name, trained) else 0.0
        groups.setdefault((own or recipe.learning_rate, decay), []).append(value)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            [
                {"params": values, "lr": lr, "weight_decay": decay}
                for (lr, decay), values in sorted(groups.items(), key=lambda one: -one[0][1])
            ],
            fused=True,  # on two cores a fifth of the time of the loop over tensors
        )
    }
    if rate is not None and muon:
        matrices = [trained[name] for name in muon]
        # bfloat16 for speed, where products are rounded anyway
        is_exact = recipe.precision == "float32" or matrices[0].device.type == "cpu"
        dtype = torch.float32 if is_exact else torch.bfloat16
        optimizers["muon"] = Muon(matrices, lr=rate, weight_decay=recipe.weight_decay, dtype=dtype)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # what the schedule multiplies
    return optimizers


def _is_layer_matrix(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return ".layer" in name and "embeddings" not in name and trained[name].ndim == 2


def _decays(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return trained[name].ndim >= 2 and "projection" not in name.split(".")
