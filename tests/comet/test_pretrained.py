"""Files of models as strangers may hand them over."""

import ast
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

import comet
from comet import pretrained
from comet.pretrained import load_any_tokenizer, load_config, load_model, random_model, saved_class
from comet.students import load_masked_lm, load_tokenizer
from comet.toy import LANGUAGES, toy_sentences


@pytest.fixture
def saved(tmp_path):
    """A model in a folder."""
    tiny_model("xlm-r").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, file="config.json", **values):
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(content))


def load(folder):
    return load_model(AutoModelForMaskedLM, str(folder))[0]


def test_models_configurations_and_tokenizers_are_loaded_in_one_place():
    package = Path(comet.__file__).parent
    names = {"from_pretrained", "from_config", "_from_config", "get_config_dict", "for_model"}
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    assert {one.partition(":")[0] for one in found} == {"pretrained.py"}, found


@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal",
            "_experts_implementation", "experts_implementation"]
)  # fmt: skip
@pytest.mark.parametrize("kernel", ["someone/kernel", "flash_attention_2", "eager"])
def test_a_configuration_chooses_no_kernel(saved, monkeypatch, key, kernel):
    fetched = []
    kernels = types.ModuleType("kernels")
    kernels.get_kernel = lambda *given, **_: fetched.append(given)
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    change(saved, **{key: kernel})
    assert load_config(str(saved))._attn_implementation is None
    model = load(saved)
    assert model.config._attn_implementation == "sdpa"
    made = random_model(AutoModelForSequenceClassification, load_config(str(saved)))
    assert made.config._attn_implementation == "sdpa"
    assert not fetched


@pytest.mark.parametrize(
    "values",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_attentions": True, "_attn_implementation": "flash_attention_2"},
        {"output_hidden_states": True, "return_dict": False},
        {"torchscript": True},
        {"use_cache": True, "gradient_checkpointing": True},
        {"chunk_size_feed_forward": 8},
        {"problem_type": "regression"},
        {"_name_or_path": "someone/else", "_commit_hash": "0"},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"auto_map": {"AutoModelForMaskedLM": "modeling_x.X", "AutoConfig": "configuration_x.X"}},
    ],
    ids=lambda values: " ".join(values),
)
def test_a_configuration_does_not_change_what_a_call_returns(saved, values):
    (saved / "modeling_x.py").write_text("raise SystemExit")
    (saved / "configuration_x.py").write_text("raise SystemExit")
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    expected = load(saved)(input_ids=ids)
    change(saved, **values)
    model = load(saved)
    found = model(input_ids=ids)
    assert found.keys() == expected.keys() == {"logits"}
    assert torch.equal(found.logits, expected.logits)
    assert model.dtype == torch.float32
    assert model.config.name_or_path == str(saved)
    made = random_model(AutoModelForMaskedLM, load_config(str(saved)))
    assert made.dtype == torch.float32
    assert made(input_ids=ids).keys() == {"logits"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"is_decoder": True}, "is_decoder is set"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config is set"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is set"),
        ({"fusion_config": {"x": True}}, "fusion_config is set"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ({"model_type": "mine"}, "does not know model_type 'mine'"),
        ({"model_type": None}, "does not know model_type None"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}, "which is never run"),
        ({"to_dict": 1}, "to_dict is no setting"),
        ({"vocab_size": "300"}, "vocab_size"),
    ],
)
def test_a_configuration_that_is_refused(saved, values, said):
    change(saved, **values)
    for call in (load_config, load):
        with pytest.raises(ValueError, match=f"--model: cannot load .*{re.escape(said)}") as raised:
            call(str(saved))
        assert "\n" not in str(raised.value)
        assert str(raised.value).count("--model") == 1


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other.safetensors", "/x.safetensors", 3])
def test_an_index_names_only_safetensors_of_its_folder(saved, name):
    weights = load_file(saved / "model.safetensors")
    save_file(weights, saved.parent / "other.safetensors", metadata={"format": "pt"})
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json.*(only|cannot be the name)"):
        load(saved)


def test_weights_in_shards_are_the_same(saved):
    expected = load(saved).state_dict()
    tiny_model("xlm-r").save_pretrained(saved.parent / "shards", max_shard_size="9KB")
    load(saved.parent / "shards")
    (saved.parent / "shards/model-00002-of-00003.safetensors").unlink(missing_ok=True)
    for path in (saved.parent / "shards").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="which is missing"):
        load(saved.parent / "shards")
    assert load(saved).state_dict().keys() == expected.keys()


def test_an_adapter_is_refused(saved):
    adapter = {"base_model_name_or_path": "someone/else", "peft_type": "LORA"}
    (saved / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match=r"holds an adapter .*merge it"):
        load(saved)


def test_pickled_weights_say_how_to_convert_them(saved, capsys):
    expected = load(saved).state_dict()
    torch.save(load(saved).state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="convert it: python -c") as raised:
        load(saved)
    (line,) = re.findall(r'python -c "(.*)"', str(raised.value))
    exec(line, {})
    for name, value in load(saved).state_dict().items():
        assert torch.equal(value, expected[name])


def test_pickled_weights_on_the_hub_say_how_to_convert_them(tmp_path, monkeypatch):
    tiny_model("xlm-r").config.save_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot load someone/theirs: .*, and give theirs-saf"):
        load("someone/theirs")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["roberta.encoder.layer.1.output.dense.weight", "lm_head.bias"])
def test_weights_that_are_no_numbers_are_refused_by_name(saved, name, number):
    weights = load_file(saved / "model.safetensors")
    weights[name].view(-1)[3] = number
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 of the [\d,]+ numbers of {name} are not finite"):
        load(saved)


@pytest.mark.parametrize("kind", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("named", [None, [], ["pipeline"], ["GPT2LMHeadModel"], ["Trainer"]])
def test_weights_tell_the_class_where_the_configuration_does_not(tmp_path, kind, named):
    model = random_model(kind, tiny_model("xlm-r").config)
    model.save_pretrained(tmp_path)
    change(tmp_path, architectures=named)
    assert saved_class(load_config(str(tmp_path)), "", tmp_path) is type(model)


def test_a_tokenizer_reads_no_file_outside_of_its_folder(tmp_path):
    for name, words in (("ours", "ab"), ("theirs", "cde")):
        words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, words[0]))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / name)
    expected = load_any_tokenizer(str(tmp_path / "ours")).get_vocab()
    theirs = str(tmp_path / "theirs/tokenizer.json")
    change(tmp_path / "ours", "tokenizer_config.json", tokenizer_file=theirs, vocab_file=theirs)
    assert load_any_tokenizer(str(tmp_path / "ours")).get_vocab() == expected


@pytest.mark.parametrize("files", [("tokenizer_config.json",), ()])
def test_a_tokenizer_in_sentencepiece_alone_says_what_converts_it(saved, monkeypatch, files):
    (saved / "sentencepiece.bpe.model").write_bytes(b"")
    for name in files:
        (saved / name).write_text("{}")
    monkeypatch.setattr(pretrained, "is_sentencepiece_available", lambda: False)
    said = r"sentencepiece\.bpe\.model, .*: pip install sentencepiece protobuf, and start"
    with pytest.raises(ValueError, match=f"--teacher: cannot load .* {said}"):
        load_tokenizer(str(saved))


@pytest.mark.parametrize("files", [("tokenizer_config.json",), ()])
def test_a_tokenizer_in_sentencepiece_is_converted(saved, files):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = (text for language in LANGUAGES for text in toy_sentences(language, 100))
    with (saved / "sentencepiece.bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, vocab_size=200, hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
    for name in files:
        (saved / name).write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    tokenizer = load_tokenizer(str(saved))
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    (saved / "sentencepiece.bpe.model").rename(saved / "spm.model")
    with pytest.raises(ValueError, match=r"spm\.model is not what .* reads; rename it to sent"):
        load_tokenizer(str(saved))


def test_a_configuration_that_unties_what_is_tied_is_named(saved):
    change(saved, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"--teacher: .* says tie_word_embeddings: false; remove"):
        load_masked_lm(str(saved))
