import copy

import pytest
import torch
from accuracy import relative_rms
from tiny import tiny_model
from torch import nn

from comet import frozen
from comet.tap import TappedEncoder

CPU = torch.device("cpu")


def said(encoder):
    """Head inputs and the tapped layer's query under autocast."""
    ids = torch.randint(5, 120, (3, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tapped = encoder(ids, None)
    return tapped.hidden.float(), tapped.query.float()


def layers_of(encoder):
    head = encoder.model.get_output_embeddings()
    return [one for one in encoder.modules() if isinstance(one, nn.Linear) and one is not head]


@pytest.fixture(params=["xlm-r", "modernbert"])
def encoder(request):
    return TappedEncoder(tiny_model(request.param))


def test_with_instructions_for_it_rounding_once_changes_no_bit(encoder, monkeypatch):
    monkeypatch.setattr(frozen, "cpu_multiplies_bfloat16", lambda: True)
    expected = said(copy.deepcopy(encoder))
    frozen.round_weights(encoder, "bfloat16", CPU)
    assert all(layer.weight.dtype == torch.bfloat16 for layer in layers_of(encoder))
    assert all(map(torch.equal, said(encoder), expected))


def test_without_them_only_the_weights_are_rounded(encoder, monkeypatch):
    monkeypatch.setattr(frozen, "cpu_multiplies_bfloat16", lambda: False)
    rounded = copy.deepcopy(encoder)
    for layer in layers_of(rounded):
        layer.weight.data = layer.weight.data.bfloat16().float()
    ids = torch.randint(5, 120, (3, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = rounded(ids, None).hidden
    half = said(copy.deepcopy(encoder))[0]
    frozen.round_weights(encoder, "bfloat16", CPU)
    assert all(layer.weight.dtype == torch.bfloat16 for layer in layers_of(encoder))
    ours = said(encoder)[0]
    assert relative_rms(ours, exact) <= 1e-2
    assert relative_rms(ours, exact) <= relative_rms(half, exact)


def test_embeddings_and_head_stay(encoder):
    model = encoder.model
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    frozen.round_weights(encoder, "bfloat16", CPU)
    assert model.get_output_embeddings().weight is head
    assert model.get_input_embeddings().weight is embeddings
    assert head.dtype == embeddings.dtype == torch.float32


def test_float32_is_left_alone(encoder):
    frozen.round_weights(encoder, "float32", CPU)
    assert all(value.dtype == torch.float32 for value in encoder.parameters())
