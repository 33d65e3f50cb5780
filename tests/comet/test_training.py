import pytest
import torch
from tiny import tiny_model

from comet.recipe import OptimisationRecipe
from comet.training import make_accelerator, make_optimizers


def groups_of(optimizer, names):
    return [
        ({names[id(value)] for value in group["params"]}, group["weight_decay"])
        for group in optimizer.param_groups
    ]


def wrapped():
    module = torch.nn.Module()
    module.student = tiny_model("xlm-r")
    module.projection = torch.nn.Linear(3, 3, bias=False)
    return module, {id(value): name for name, value in module.named_parameters()}


def test_adamw_decays_matrices_but_not_vectors_nor_the_projection():
    module, names = wrapped()
    recipe = OptimisationRecipe(weight_decay=0.1, steps=10, warmup_steps=1)
    (decaying, decay), (rest, none) = groups_of(make_optimizers(module, recipe)["adamw"], names)
    assert (decay, none) == (0.1, 0.0)
    assert "projection.weight" in rest
    assert "student.lm_head.decoder.weight" in decaying  # tied to the embeddings
    assert not any(name.endswith("bias") for name in decaying)
    assert len(decaying) + len(rest) == len(names)


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(architecture):
    model = tiny_model(architecture)
    names = {id(value): name for name, value in model.named_parameters()}
    recipe = OptimisationRecipe(muon_learning_rate=0.01, steps=10, warmup_steps=1)
    optimizers = make_optimizers(model, recipe)
    ((muon, _),) = groups_of(optimizers["muon"], names)
    matrices = {n for n, v in model.named_parameters() if ".layer" in n and v.ndim == 2}
    assert muon == matrices
    assert len(muon) >= 4 * 4
    assert not any("embed" in name or "decoder" in name or "head" in name for name in muon)
    adamw = set().union(*(found for found, _ in groups_of(optimizers["adamw"], names)))
    assert adamw == set(names.values()) - muon


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueError, match="started as 2 processes"):
        make_accelerator(OptimisationRecipe())
