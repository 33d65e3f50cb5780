"""Exports: what onnxruntime says is what the model says, in int8 nearly so, and nothing is left half done."""

import io
import json
import shutil
import sys
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors import safe_open
from tiny_tasks import write_entities, write_sentiment
from tuned_models import save_tiny

from comet import Classifier, export, predict
from comet.evaluate import evaluate
from comet.export import Form, description, main
from comet.exports.parity import Parity, unlabelled
from comet.exports.quantisation import SMALLEST, by_row, sums_overflow
from comet.exports.weighing import weigh
from comet.fine_tuned import find_model
from comet.onnx_encoder import GRAPH, load_encoder
from comet.task_batches import prediction_batches
from comet.task_model import read_card
from comet.tasks import Task, TaskRecipe, open_task
from comet.tfidf import TfidfModel
from comet.toy import LANGUAGES, toy_sentences
from comet.tuned_runs import weights_fingerprint

TEXTS = [text for language in LANGUAGES for text in toy_sentences(language, 12)]
FILES = {
    "README.md",
    GRAPH,
    "config.json",
    "comet.json",
    "export.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def sources(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    save_tiny(folder / "xlm-r", tokenizer, seed=2, max_length=40)
    save_tiny(folder / "bert", tokenizer, seed=2, max_length=40, architecture="bert")
    save_tiny(folder / "modernbert", tokenizer, "token", seed=6, max_length=40,
              architecture="modernbert")  # fmt: skip
    write_sentiment(folder / "texts")
    write_entities(folder / "words")
    return folder


@pytest.fixture(scope="module")
def exported(sources):
    """The folder of an exported model, each architecture in a form of its own, made when first asked for."""
    forms = {
        "xlm-r": ("--int8", "--data", str(sources / "texts/hau/dev.tsv")),
        "bert": ("--optimize",),
        "modernbert": ("--int8", "--optimize", "--data", str(sources / "words")),
    }

    @cache
    def of(name):
        output = sources / "out" / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("comet.exports.parity.SAME", 0.0)  # random weights suffer more
            main(["--model", str(sources / name), "--format", "onnx", "--output", str(output),
                  *forms[name]])  # fmt: skip
        return output

    return of


def report_of(folder):
    return json.loads((folder / "export.json").read_text())


def logits_of(folder, texts, batch_size):
    """Each text's logits at its first token, as a model's own tokenizer reads it."""
    model, tokenizer, _ = load_encoder(folder)
    from comet.task_batches import encode
    from comet.tasks import Example

    rows = encode([Example(text, 0, "", n) for n, text in enumerate(texts)], tokenizer, 40)
    found = {}
    with torch.no_grad():
        for chosen, batch in prediction_batches(rows, tokenizer.pad_token_id, batch_size):
            for row, values in zip(chosen, model.eval()(batch)[0], strict=True):
                found[row.example] = values.numpy()
    return np.array([found[number] for number in range(len(texts))])


# What is exported


def test_a_graph_in_float32_gives_the_same_logits_alone_and_in_batches(sources, exported):
    expected = logits_of(sources / "bert", TEXTS, 7)
    for batch_size in (1, 7, 64):
        found = logits_of(exported("bert"), TEXTS, batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    report = report_of(exported("bert"))
    assert report["parity"]["agreement"] == 1
    assert report["parity"]["largest_error"] < 1e-4
    assert max(one["error"] for one in report["shapes"]) < 1e-4
    assert (
        report["operations"].get("MultiHeadAttention", 0) + report["operations"].get("Attention", 0)
        == 2
    )  # one of each layer
    assert "Softmax" not in report["operations"]


@pytest.mark.parametrize("name", ["xlm-r", "bert", "modernbert"])
def test_an_exported_folder_holds_what_is_needed_and_no_more(exported, name, sources):
    assert {path.name for path in (exported(name)).iterdir()} == FILES
    assert not list(exported(name).parent.glob(".*"))
    before, after = (read_card(one) for one in (sources / name, exported(name)))
    assert (after.labels, after.max_length) == (before.labels, before.max_length)
    report = report_of(exported(name))
    assert report["bytes"]["after"] == weigh(exported(name))
    lengths = {(one["batch"], one["length"], one["padded"]) for one in report["shapes"]}
    assert {(1, 1, False), (1, 40, False), (3, 20, False), (5, 40, True)} <= lengths
    assert report["versions"]["onnxruntime"]
    inputs = onnx.load(exported(name) / GRAPH).graph.input
    assert all(one.dim_param for value in inputs for one in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("name", ["xlm-r", "modernbert"])
def test_in_int8_nothing_large_is_in_float32_and_nothing_there_twice(exported, sources, name):
    model = onnx.load(exported(name) / GRAPH)
    large = [one for one in model.graph.initializer if np.prod(one.dims) >= 1024]
    assert large
    left = [one.name for one in large if one.data_type == TensorProto.FLOAT]
    assert all("position" in one for one in left)  # a table too small to be worth it
    assert all(np.prod(one.dims) < SMALLEST for one in large if one.name in left)
    contents = [numpy_helper.to_array(one).tobytes() for one in large]
    assert len(set(contents)) == len(contents)
    weighed = report_of(exported(name))["bytes"]
    assert weighed["after"]["embeddings"] < 0.45 * weighed["before"]["embeddings"]
    kept = report_of(exported(name))["quantized"]
    assert kept["tables"] == 1
    assert kept["products_in_float32"] == 1  # the classifier
    there = report_of(exported(name))["operations"]
    products = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
    assert sum(there.get(one, 0) for one in products) == kept["products"] > 0
    assert kept["reduce_range"] == sums_overflow()


def test_embeddings_alone_in_int8(exported, sources, tmp_path, monkeypatch):
    traced = exported("bert") / GRAPH  # stands for what the exporter would give
    monkeypatch.setattr(export, "trace", lambda _, file: file.write_bytes(traced.read_bytes()))
    main(["--model", str(sources / "bert"), "--format", "onnx", "--int8", "embeddings",
          "--output", str(tmp_path / "new")])  # fmt: skip
    report = report_of(tmp_path / "new")
    assert report["quantized"] == {"tables": 1}
    assert report["weights"] == "int8, embeddings"
    before, after = (weigh(one) for one in (traced.parent, tmp_path / "new"))
    assert after["weights"] == before["weights"]
    assert after["embeddings"] < 0.45 * before["embeddings"]
    assert report["parity"]["agreement"] > 0.98
    assert 1e-5 < report["parity"]["largest_error"] < 0.05


def test_the_report_counts_the_labels_that_differ(exported, sources):
    found = report_of(exported("xlm-r"))["parity"]
    data = open_task(
        TaskRecipe(task="sequence", data=str(sources / "texts/hau/dev.tsv")),
        "test",
        labels=read_card(sources / "xlm-r").labels,
    )
    texts = [one.text for one in data.examples]
    first, second = (
        [one.label for one in Classifier(one, batch_size=64).predict(texts)]
        for one in (sources / "xlm-r", exported("xlm-r"))
    )
    other = sum(one != two for one, two in zip(first, second, strict=True))
    assert found["labels"] == len(texts) == 50
    assert found["other"] == other
    assert found["agreement"] == pytest.approx(1 - other / 50)
    assert 0 < found["largest_error"] < 1
    gold = [data.task.labels[one.label] for one in data.examples]
    right = np.mean([one == two for one, two in zip(first, gold, strict=True)])
    assert abs(found["measures"]["before"]["weighted_f1"] - right) < 0.3
    assert set(found["measures"]["after"]) == {"weighted_f1", "macro_f1"}


def test_words_are_tagged_by_an_exported_model_too(exported, sources):
    first, second = (
        Classifier(one).entities(TEXTS) for one in (sources / "modernbert", exported("modernbert"))
    )
    same = sum(one == two for one, two in zip(first, second, strict=True))
    assert same >= 0.5 * len(TEXTS)  # of random weights, whose answers are close together
    assert any(first)
    assert report_of(exported("modernbert"))["parity"]["labels"] > 100
    assert set(report_of(exported("modernbert"))["parity"]["measures"]["after"]) == {"f1"}


def test_commands_take_an_exported_folder(exported, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "_input", lambda: io.BytesIO("\n".join(TEXTS[:5]).encode()))
    predict.main(["--model", str(exported("bert")), "--format", "tsv"])
    labels = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert labels == [one.label for one in Classifier(sources / "bert").predict(TEXTS[:5])]
    task = TaskRecipe(task="sequence", data=str(sources / "texts"), languages=["hau"])
    scores = [
        evaluate(models=[one], task=task, split="dev", output=tmp_path / one.parent.name)
        for one in (sources / "bert", exported("bert"))
    ]
    assert scores[0]["mean"] == scores[1]["mean"]
    prints = {weights_fingerprint(one) for one in (sources / "bert", exported("bert"))}
    assert len(prints) == 2
    assert "" not in prints
    assert find_model(exported("bert")).folder == exported("bert")


def test_weights_in_float16_take_half_and_are_read_as_float32(sources, tmp_path):
    report = export.export(sources / "xlm-r", Form("safetensors"), tmp_path / "half")
    with safe_open(tmp_path / "half/model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    before, after = report["bytes"]["before"], report["bytes"]["after"]
    assert 2 * after["embeddings"] == before["embeddings"]
    assert 2 * after["weights"] == before["weights"]
    model = load_encoder(tmp_path / "half").model
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert report["parity"]["labels"] == 300
    assert 0 < report["parity"]["largest_error"] < 0.05
    assert report["parity"]["measures"] is None
    assert "float16" in description(report)
    assert export.export(sources / "xlm-r", Form("safetensors"))["output"].endswith("xlm-r-float16")


# How it is compared


def test_models_that_differ_are_told_apart(sources, tokenizer, tmp_path):
    save_tiny(tmp_path / "other", tokenizer, seed=3, max_length=40)
    source, other = load_encoder(sources / "xlm-r"), load_encoder(tmp_path / "other")
    task = Task("t", "sequence", tuple(source.card.labels))
    (tmp_path / "text").write_text("\n".join(["", *TEXTS]), encoding="utf-8")
    parity = Parity(source, unlabelled(task, tmp_path / "text"))
    itself = parity.of(source.model)
    assert (itself["other"], itself["largest_error"], itself["same"]) == (0, 0, True)
    found = parity.of(other.model)
    expected = logits_of(sources / "xlm-r", TEXTS, 64) - logits_of(tmp_path / "other", TEXTS, 64)
    assert found["largest_error"] == pytest.approx(np.abs(expected).max(), abs=1e-4)
    assert found["labels"] == len(TEXTS)
    assert found["other"] > 0.05 * len(TEXTS)
    assert not found["same"]


@pytest.mark.parametrize("name", ["xlm-r", "modernbert"])
def test_where_labels_change_the_products_that_suffer_most_stay_in_float32(
    sources, exported, tmp_path, monkeypatch, capsys, name
):
    usual = report_of(exported(name))["quantized"]
    assert not usual["spared"]
    assert "stay in float32" not in description(report_of(exported(name)))
    answers = iter([False, True])
    of = Parity.of
    monkeypatch.setattr(Parity, "of", lambda *asked: of(*asked) | {"same": next(answers)})
    main(["--model", str(sources / name), "--format", "onnx", "--int8", "--output",
          str(tmp_path / "spared")])  # fmt: skip
    kept = report_of(tmp_path / "spared")
    layers = load_encoder(sources / name).model.model.config.num_hidden_layers
    assert kept["quantized"]["spared"]
    assert kept["quantized"]["products_in_float32"] == 1 + layers + 1
    assert kept["quantized"]["products"] == usual["products"] - layers - 1
    assert kept["bytes"]["after"] == weigh(tmp_path / "spared")
    assert kept["parity"]["same"]
    assert f"{layers + 2} products stay in float32" in capsys.readouterr().out


def test_too_many_other_labels_are_said_plainly(exported):
    report = report_of(exported("xlm-r"))
    for agreement in (0.9949, 0.995):
        report["parity"] |= {"agreement": agreement, "same": agreement >= 0.995}
        assert ("WARNING" in description(report)) == (agreement < 0.995)


def test_rows_in_int8_are_off_by_half_a_step_at_most():
    random = np.random.default_rng(0)
    values = (random.normal(size=(40, 16)) * random.lognormal(0, 3, size=(40, 1))).astype(
        np.float32
    )
    values[3] = 0
    whole, scale = by_row(values)
    assert (whole.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (40, 1))
    assert (np.abs(whole * scale - values) <= 0.5001 * scale).all()
    assert (np.abs(whole).max(1)[np.arange(40) != 3] == 127).all()


def test_seven_bits_where_sixteen_bit_sums_overflow(tmp_path, monkeypatch):
    for flags, expected in (("avx2 avx512f", True), ("avx2 avx512_vnni", False), ("neon", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : sse {flags}\n")
        monkeypatch.setattr("comet.exports.quantisation._CPU", tmp_path / "cpuinfo")
        assert sums_overflow() is expected
    monkeypatch.setattr("comet.exports.quantisation._CPU", tmp_path / "none")
    assert not sums_overflow()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\u00e9\n".encode("latin-1") * 3, "is not in UTF-8: 3 of its first 3 lines"),
        ("a text\n".encode("utf-16"), "is in UTF-16, expected UTF-8; convert it: iconv -f UTF-16"),
        (b"a\nb\nc\xe9 d\n", "line 3: .*can't decode byte 0xe9"),
        (b"a\nb\nc\0d\n", "line 3: holds NUL characters"),
    ],
)
def test_text_that_is_not_in_utf_8_is_refused(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=f"--text: .*text {message}"):
        unlabelled(Task("t", "sequence", ("a", "b")), tmp_path / "text")


def test_lines_of_text_end_with_a_newline_alone(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffone\u2028line\r\n\nanother\x85one".encode())
    found = unlabelled(Task("t", "sequence", ("a", "b")), tmp_path / "text")
    assert [one.text for one in found.data.examples] == ["one\u2028line", "another\x85one"]


def test_each_form_has_a_folder_of_its_own_beside_the_model(sources, monkeypatch):
    forms = [Form(), Form(optimise=True), Form(int8="all"), Form(int8="embeddings")]
    assert len({one.name for one in [*forms, Form("safetensors")]}) == 5
    monkeypatch.chdir(sources / "bert")
    report = export.export(".", Form("safetensors"))
    assert report["output"] == str(sources.resolve() / "bert-float16")


# What cannot be


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--format", "safetensors", "--int8"], "--int8: goes with --format onnx"),
        (["--format", "safetensors", "--optimize"], "--optimize: goes with --format onnx"),
        (["--format", "onnx", "--reduce-range"], "--reduce-range: goes with --int8 all"),
        (["--format", "safetensors", "--split", "dev"], "--split: goes with --data"),
        (["--format", "safetensors", "--languages", "hau"], "--languages: goes with --data"),
        (["--format", "safetensors", "--data", "there", "--split", "dev"], "there is one file"),
        (["--format", "safetensors", "--data", "x", "--text", "y"], "--text: goes without --data"),
        (["--format", "safetensors", "--data", "none.tsv"], "task.data: none.tsv does not exist"),
        (["--format", "safetensors", "--text", "none.txt"], "--text: cannot read none.txt"),
        (["--format", "safetensors", "--model", "teacher"], "holds no fine-tuned model"),
        (["--format", "safetensors", "--model", "tfidf"], "is a TF-IDF model"),
        (["--format", "onnx", "--model", "graph"], "was exported itself"),
        (["--format", "onnx", "--model", "none"], "none is not a folder"),
        (["--format", "onnx", "--model", "slow"], "slow: it has no fast tokenizer"),
        (["--format", "onnx", "--output", "nowhere"], "nowhere exists; name another folder"),
        (["--format", "onnx", "--output", "there"], "there exists; name another folder"),
        (
            ["--format", "safetensors", "--output", "there/new"],
            "there is a file, so there/new cannot be made",
        ),
    ],
)
def test_what_cannot_be_is_said_and_nothing_written(
    sources, teacher_folder, tmp_path, monkeypatch, given, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "teacher").symlink_to(teacher_folder)
    TfidfModel(("a", "b")).fit(["x y", "y z"] * 3, [0, 1] * 3).save(tmp_path / "tfidf")
    shutil.copytree(sources / "xlm-r", tmp_path / "slow")
    (tmp_path / "slow/tokenizer.json").unlink()
    (tmp_path / "nowhere").symlink_to("away")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph/config.json").write_text("{}")
    (tmp_path / "graph" / GRAPH).write_bytes(b"")
    there = sorted(path.name for path in tmp_path.iterdir())
    model = [] if "--model" in given else ["--model", str(sources / "xlm-r")]
    output = [] if "--output" in given else ["--output", "new"]
    with pytest.raises((ValueError, OSError), match=r".") as raised:
        main([*model, *output, *given])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    assert (tmp_path / "there").read_text() == "mine"


def test_an_interrupted_export_is_begun_anew_and_a_failed_one_leaves_nothing(
    sources, tmp_path, monkeypatch
):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial/junk").write_text("half")

    def fail(_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(export, "weigh", fail)
        with pytest.raises(OSError, match="No space left"):
            export.export(sources / "bert", Form("safetensors"), tmp_path / "new")
        assert list(tmp_path.iterdir()) == []
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial/junk").write_text("half")
    export.export(sources / "bert", Form("safetensors"), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert "junk" not in {path.name for path in (tmp_path / "new").iterdir()}


def test_a_graph_that_is_off_in_float32_is_refused(sources, tmp_path, monkeypatch):
    class Off(torch.nn.Module):
        def __init__(self, file):
            super().__init__()
            self.its = load_encoder(sources / "xlm-r").model

        def forward(self, batch):
            return self.its(batch)[0] + 0.1 * (batch.input_ids.shape[0] > 1), None

    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "finish", lambda *_, **__: {})
    monkeypatch.setattr(export, "OnnxEncoder", Off)
    with pytest.raises(ValueError, match=r"^--optimize: .* off by 0.1 with 3 sequences of 20 tok"):
        export.export(sources / "xlm-r", Form(optimise=True), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers_end_a_prediction(exported, monkeypatch):
    classifier = Classifier(exported("bert"))

    class Session:
        def run(self, *_):
            return [np.array([[np.nan, 0.0, 0.0]], np.float32)]

    monkeypatch.setattr(classifier._encoder._model, "_session", Session())
    with pytest.raises(ValueError, match=r"--model: .*model\.onnx: its logits are not all finite"):
        classifier.predict(["sannu"])


def test_missing_packages_and_broken_files_are_named(sources, exported, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in FILES:
        (broken / name).write_bytes((exported("bert") / name).read_bytes())
    (broken / GRAPH).write_bytes((exported("bert") / GRAPH).read_bytes()[:500])
    with pytest.raises(ValueError, match=r"^--model: cannot load .*model\.onnx: .") as raised:
        Classifier(broken)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"--device: got 'meta', but .* exported for the CPU"):
        Classifier(exported("bert"), device="meta")
    for package in ("onnxscript", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(ValueError, match=rf"needs {package}: pip install 'comet-distill\["):
                main(["--model", str(sources / "xlm-r"), "--format", "onnx", "--output", "new"])
            if package == "onnxruntime":
                with pytest.raises(ValueError, match="is run by onnxruntime: pip install 'comet-"):
                    Classifier(exported("bert"))
