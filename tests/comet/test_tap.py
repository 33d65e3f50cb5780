import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForMaskedLM, MPNetConfig

from comet.tap import TappedEncoder, usable_positions

ARCHITECTURES = ["xlm-r", "bert", "electra", "modernbert"]


def padded_ids():
    ids = torch.randint(5, 120, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    return ids.masked_fill(~mask, 1), mask


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, -1])
def test_query_and_key_give_the_eager_attention_map(architecture, layer):
    model, eager = tiny_model(architecture), tiny_model(architecture)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    ids, mask = padded_ids()
    expected = eager(input_ids=ids, attention_mask=mask.long(), output_attentions=True)
    tapped = TappedEncoder(model, layer)(ids, mask)
    scores = tapped.query @ tapped.key.transpose(-1, -2) * tapped.scale
    probabilities = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    real = mask[:, None, :, None].expand_as(probabilities)
    torch.testing.assert_close(probabilities[real], expected.attentions[layer][real])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_times_output_embeddings_are_the_logits(architecture):
    model = tiny_model(architecture)
    ids, mask = padded_ids()
    expected = model(input_ids=ids, attention_mask=mask.long()).logits
    encoder = TappedEncoder(model)
    hidden = encoder(ids, mask).hidden
    assert hidden.shape[-1] == model.get_output_embeddings().in_features
    torch.testing.assert_close(encoder.logits(hidden)[mask], expected[mask])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_is_not_attended(architecture):
    encoder = TappedEncoder(tiny_model(architecture))
    ids, mask = padded_ids()
    other = ids.masked_fill(~mask, 7)
    if architecture == "xlm-r":
        # positions are counted from padding ids, which must therefore stay
        other = ids
    short = encoder(ids[1:, :5], None).hidden
    torch.testing.assert_close(encoder(other, mask).hidden[1:, :5], short)


def test_an_encoder_that_hides_its_attention_is_refused_by_name():
    config = MPNetConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(ValueError, match="MPNetForMaskedLM"):
        TappedEncoder(AutoModelForMaskedLM.from_config(config))


def test_a_layer_with_a_window_is_refused_with_the_layers_that_have_none():
    with pytest.raises(ValueError, match=r"full attention: \[0, 3\]"):
        TappedEncoder(tiny_model("modernbert"), 1)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="attention_layer: got 4"):
        TappedEncoder(tiny_model("bert"), 4)


def test_usable_positions_leave_out_those_that_roberta_never_uses():
    assert usable_positions(tiny_model("xlm-r")) == 64
    assert usable_positions(tiny_model("bert")) == 66
    assert usable_positions(tiny_model("modernbert")) == 66
