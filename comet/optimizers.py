"""Optimizers of a run: AdamW and, if asked for, Muon (Jordan et al., 2024) for the weight matrices of the layers."""

from collections.abc import Mapping

import torch
from torch import nn

from comet.recipe import OptimisationRecipe


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
        optimizers["muon"] = torch.optim.Muon(
            [trained[name] for name in muon], lr=rate, weight_decay=recipe.weight_decay
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # what the schedule multiplies
    return optimizers


def _is_layer_matrix(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return ".layer" in name and "embeddings" not in name and trained[name].ndim == 2


def _decays(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return trained[name].ndim >= 2 and "projection" not in name.split(".")
