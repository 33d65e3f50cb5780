import pytest
import torch
from accuracy import relative_rms
from tiny import tiny_model
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    EsmConfig,
    FNetConfig,
    MobileBertConfig,
    MPNetConfig,
    RemBertConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
    XLMConfig,
    XLMRobertaXLConfig,
)

from comet.memory_advice import Shape, sizes_of
from comet.student_recipe import StudentRecipe
from comet.students import count_parameters, make_student
from comet.tap import TappedEncoder, layer_index, usable_positions

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}
OTHER = {"vocab_size": 50, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 20}
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


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AlbertConfig(**SHAPE, embedding_size=8), None),
        (CamembertConfig(**SHAPE), None),
        (DistilBertConfig(**OTHER, dim=16, hidden_dim=24), None),
        (RobertaConfig(**SHAPE), None),
        (RobertaPreLayerNormConfig(**SHAPE), None),
        (XLMRobertaXLConfig(**SHAPE), None),
        (DebertaV2Config(**SHAPE), "deberta-v2 .*DebertaV2ForMaskedLM.* query and key"),
        (FNetConfig(**SHAPE), "fnet .*query and key"),
        (MPNetConfig(**SHAPE), "mpnet .*MPNetForMaskedLM.* query and key"),
        (RemBertConfig(**SHAPE), "rembert .*query and key"),
        (XLMConfig(n_words=50, emb_dim=16, n_layers=2, n_heads=2), "xlm .*query and key"),
        (EsmConfig(**SHAPE, mask_token_id=4), "esm .*changes its logits"),
        (
            MobileBertConfig(**SHAPE, embedding_size=8, intra_bottleneck_size=8),
            "mobilebert .*changes its logits",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_an_encoder_of_another_family_is_read_or_refused_by_name(config, said):
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.randint(5, 50, (2, 9))
    expected = model(input_ids=ids).logits
    if said is not None:
        with pytest.raises(ValueError, match=said):
            TappedEncoder(model)
        return
    encoder = TappedEncoder(model)
    torch.testing.assert_close(encoder.logits(encoder(ids, None).hidden), expected)
    assert sizes_of(model).student == Shape(count_parameters(model), 2, 16, 24, 2)
    recipe = StudentRecipe(layers=1, hidden_size=8, heads=2, intermediate_size=12, initial="random")
    student = make_student(config, recipe)
    assert sizes_of(student).student == Shape(count_parameters(student), 1, 8, 12, 2)


def test_a_head_that_bends_its_logits_is_refused():
    model = tiny_model("bert")
    model.cls.predictions.register_forward_hook(lambda _, __, logits: logits.tanh())
    with pytest.raises(ValueError, match="changes its logits after the output embeddings"):
        TappedEncoder(model)


def test_a_layer_with_a_window_is_refused_with_the_layers_that_have_none():
    with pytest.raises(ValueError, match=r"full attention: \[0, 3\]"):
        TappedEncoder(tiny_model("modernbert"), 1)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match="attention_layer: got 4, but BertForMaskedLM has 4 layers"
    ):
        TappedEncoder(tiny_model("bert"), 4)


@pytest.mark.parametrize(
    ("layer", "layers", "index"),
    [
        ("last", 24, 23),
        ("upper-middle", 24, 18),
        ("upper-middle", 12, 9),
        ("upper-middle", 6, 4),
        ("upper-middle", 2, 1),
        ("upper-middle", 1, 0),
        (0, 6, 0),
        (-2, 6, 4),
    ],
)
def test_layers_have_names_and_numbers(layer, layers, index):
    """The 19th of 24 is MiniLMv2's for XLM-R-large."""
    assert layer_index(layer, layers) == index


def test_the_value_is_that_of_the_layer():
    model = tiny_model("bert")
    inputs = []
    module = model.bert.encoder.layer[2].attention.self.value
    module.register_forward_hook(lambda _, given, output: inputs.append(output))
    ids, mask = padded_ids()
    tapped = TappedEncoder(model, 2)(ids, mask)
    assert tapped.value.shape == tapped.query.shape
    torch.testing.assert_close(tapped.value.transpose(1, 2).flatten(2), inputs[-1])


@pytest.mark.parametrize("keep_value", [False, True])
def test_freezing_leaves_what_the_attention_depends_on(keep_value):
    encoder = TappedEncoder(tiny_model("bert"), 1)
    encoder.freeze_above_attention(keep_value=keep_value)
    trained = [name for name, value in encoder.named_parameters() if value.requires_grad]
    places = {name.split("encoder.layer.")[1][0] for name in trained if "encoder.layer" in name}
    assert places == {"0", "1"}
    of_layer = {name.split("self.")[1].split(".")[0] for name in trained if "layer.1" in name}
    assert of_layer == ({"query", "key", "value"} if keep_value else {"query", "key"})
    assert any("word_embeddings" in name for name in trained)


def losses_of(encoder):
    """A number that depends on all that is tapped, and the gradient of every parameter."""
    ids, mask = padded_ids()
    encoder.zero_grad()
    tapped = encoder(ids, mask)
    parts = (tapped.hidden, tapped.query, tapped.key, tapped.value)
    total = sum((one.flatten() * torch.linspace(-1, 1, one.numel())).sum() for one in parts)
    total.backward()
    found = [one.grad.flatten() for one in encoder.parameters() if one.grad is not None]
    return total.detach(), torch.cat(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, "last"])
def test_layers_that_run_again_for_the_gradient_give_the_same(architecture, layer):
    model = tiny_model(architecture)
    encoder = TappedEncoder(model, layer).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(4)
    expected = losses_of(encoder)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs = count_runs(model)
    torch.manual_seed(4)
    found = losses_of(encoder)
    assert len(runs) == 2 * model.config.num_hidden_layers
    assert_same(found, expected)


def count_runs(model):
    """A list that grows with every run of a layer's attention."""
    runs = []
    name = "attn" if model.config.model_type == "modernbert" else "attention.self"
    for path, module in model.named_modules():
        if path.endswith("." + name):
            module.register_forward_hook(lambda *_: runs.append(1))
    return runs


def assert_same(found, expected):
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_rms(actual, wanted) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_encoder_gives_the_same(checkpointing):
    """As one graph, unless its layers run again for the gradient; `aot_eager` leaves out the compilation to C++."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_model("xlm-r", num_hidden_layers=2, **quiet)
    encoder = TappedEncoder(model, 0).train()
    torch.manual_seed(4)
    expected = losses_of(encoder)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encoder.compile(dynamic=True, fullgraph=not checkpointing, backend="aot_eager")
    torch.manual_seed(4)
    assert_same(losses_of(encoder), expected)


def test_usable_positions_leave_out_those_that_roberta_never_uses():
    assert usable_positions(tiny_model("xlm-r")) == 64
    assert usable_positions(tiny_model("bert")) == 66
    assert usable_positions(tiny_model("modernbert")) == 66
