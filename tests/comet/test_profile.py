import itertools
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny import CONFIGURATIONS, tiny_model
from tuned_models import save_tiny

from comet import profile as command
from comet.profile import main
from comet.profiles import profile as profiles
from comet.profiles import timing
from comet.profiles.models import find
from comet.profiles.profile import ratios
from comet.profiles.resident import Resident, resident_of
from comet.profiles.running import open_model, sample
from comet.profiles.sizes import disk_of, parameters_of
from comet.profiles.table import table
from comet.profiles.timing import Patience, Times, times_of

TINY = "shape:2x32,4,48,120"
CPU = torch.device("cpu")
QUICK = ["--lengths", "8", "4", "--batch", "2", "--passes", "3", "--threads", "1"]


@pytest.fixture
def no_child(monkeypatch):
    """Memory is not measured: another process would take seconds to start."""
    monkeypatch.setattr(profiles, "resident_of", lambda *_, **__: Resident(2048, 4096))
    monkeypatch.setattr(timing, "_PAUSE", 0.0)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("shape:paper-teacher", 559_893_507),
        ("shape:paper-student", 68_937_987),
        ("shape:paper-teacher:masked-lm", 560_142_482),
        ("shape:paper-student:masked-lm", 69_187_730),
    ],
)
def test_parameters_of_the_papers_shapes(name, total):
    found = parameters_of(find(name).skeleton())
    assert found.total == total
    parts = (found.embeddings, found.position_embeddings, found.encoder_layers, found.head)
    assert sum(parts) == total


def test_parts_of_the_papers_student_and_a_tied_head_once():
    width, vocabulary = 256, 250_002
    layer = 4 * (width * width + width) + 2 * width * 1024 + 1024 + width + 4 * width
    found = parameters_of(find("shape:paper-student:masked-lm").skeleton())
    assert found.embeddings == vocabulary * width + width + 2 * width  # pieces, one type, norm
    assert found.position_embeddings == 514 * width
    assert found.encoder_layers == 6 * layer
    assert found.head == width * width + width + 2 * width + vocabulary  # its matrix is the pieces'


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_parts_add_up_in_every_architecture(architecture):
    model = tiny_model(architecture)
    found = parameters_of(model)
    parts = (found.embeddings, found.position_embeddings, found.encoder_layers, found.head)
    assert sum(parts) == found.total == sum(one.numel() for one in model.parameters())
    assert min(found.embeddings, found.encoder_layers, found.head) > 0
    positions = 0 if architecture == "modernbert" else 66
    assert found.position_embeddings % 66 == 0
    assert bool(found.position_embeddings) == bool(positions)


def test_a_plain_encoder_has_no_head_but_its_pooler():
    found = parameters_of(find(TINY + ":encoder").skeleton())
    assert found.head == 32 * 32 + 32


def test_bytes_on_disk(teacher_folder, tmp_path):
    disk = disk_of(find(str(teacher_folder)), 7)
    files = {file.name: file.stat().st_size for file in teacher_folder.iterdir()}
    assert disk.weights == files["model.safetensors"]
    assert disk.tokenizer == files["tokenizer.json"] + files["tokenizer_config.json"]
    assert disk.all == sum(files.values())
    assert not disk.computed
    assert disk_of(find("shape:paper-student"), 1000).weights == 4000


class Clock:
    """Time passes in calls alone."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.log.append("pause")
        self.now += seconds

    def call(self, name, seconds):
        durations = iter(seconds)

        def run():
            self.log.append(name)
            self.now += next(durations)

        return run


def test_percentiles_by_a_clock_of_the_test():
    clock = Clock()
    warm_up = [9.0] * 3
    run = clock.call("a", [*warm_up, *range(1, 22)])
    (found,) = times_of([run], Patience(21, 1e6), clock=clock, sleep=clock.sleep)
    assert found == Times(p50=11.0, p95=20.0, passes=21)
    assert "pause" not in clock.log


def test_two_models_take_turns_and_the_first_pass_of_a_turn_does_not_count():
    clock = Clock()
    calls = []
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        turn = [99.0, *[seconds] * 5]
        calls.append(clock.call(name, [seconds] * 3 + turn * 2))
    a, b = times_of(calls, Patience(10, 1e6), clock=clock, sleep=clock.sleep)
    assert (a, b) == (Times(1.0, 1.0, 10), Times(2.0, 2.0, 10))
    order = [name for name, _ in itertools.groupby(one for one in clock.log if one != "pause")]
    assert order == ["a", "b"] * 3
    assert clock.log.count("pause") == 4


def test_slow_models_are_read_a_few_times():
    clock = Clock()
    call = clock.call("slow", itertools.repeat(10.0))
    (found,) = times_of([call], Patience(50, 20), clock=clock, sleep=clock.sleep)
    assert found.passes == timing.FEWEST
    assert len(clock.log) <= 6


def model_record(parameters, p50, **more):
    times = [{"length": 16, "seconds": {"p50": p50, "p95": 2 * p50}, "passes": 9}]
    rates = [{**times[0], "tokens_per_second": 16 / p50, "sequences_per_second": 1 / p50}]
    parts = ("embeddings", "position_embeddings", "encoder_layers", "head", "total")
    return {
        "name": "m",
        "timed": "all",
        "runtime": "torch",
        "parameters": dict.fromkeys(parts, parameters),
        "disk": {"weights": 4 * parameters, "tokenizer": None, "all": None, "computed": True},
        "resident": {"loaded": None, "peak": 8 * parameters},
        "latency": times,
        "throughput": rates,
        "published": None,
        **more,
    }


def test_ratios_are_above_one_where_the_model_is_smaller_or_faster():
    found = ratios(model_record(100, 0.5), model_record(800, 2.0))
    assert set(found["parameters"].values()) == {8.0}
    assert found["disk"] == {"weights": 8.0, "tokenizer": None, "all": None}
    assert found["resident"] == {"loaded": None, "peak": 8.0}
    assert found["latency"] == [{"length": 16, "p50": 4.0, "p95": 4.0}]
    assert found["throughput"] == found["latency"]


def test_the_table_names_published_figures_where_there_are_any():
    small = {
        "name": "shape:paper-student",
        "published": vars(find("shape:paper-student").published),
    }
    large = {
        "name": "shape:paper-teacher",
        "published": vars(find("shape:paper-teacher").published),
    }
    assert find("shape:6x256,8,1024,250002").published is None
    assert find("shape:paper-student:masked-lm").published is None
    models = [model_record(68_937_987, 0.005, **small), model_record(559_893_507, 0.2, **large)]
    record = {
        "hardware": {"processor": "P", "processors": 2, "memory_bytes": 24 << 30, "gpu": None},
        "threads": 2,
        "batch": 8,
        "versions": {"torch": "2.13", "onnxruntime": "1"},
        "models": models,
        "ratios": ratios(*models),
    }
    text = table(record)
    lines = text.splitlines()
    assert lines[0] == "2 threads of 2 × P, 24.00 GiB; torch 2.13"
    cells = [line.split() for line in lines]
    assert ["all", "68,937,987", "559,893,507", "8.12"] in cells
    assert ["weights", "263.0", "MiB", "2.09", "GiB", "8.12"] in cells
    assert ["as", "published", "69", "M", "560", "M"] in cells
    assert ["as", "published", "14", "ms", "294", "ms", "20.99"] in cells
    assert "16 tokens" in text
    assert "5 / 10 ms" in text
    assert "(9 passes)" in text
    for model in models:
        model["published"] = None
    assert "published" not in table(record)


def test_two_models_from_the_command_line(teacher_folder, tmp_path, no_child, capsys):
    json_file, plot = tmp_path / "p.json", tmp_path / "p.svg"
    written = ["--json", str(json_file), "--plot", str(plot)]
    main(["--model", TINY, "--against", str(teacher_folder), *QUICK, *written])
    found = json.loads(json_file.read_text("utf-8"))
    assert found["schema"] == 1
    assert found["threads"] == 1
    assert found["hardware"]["processors"] >= 1
    assert set(found["versions"]) == {"torch", "transformers", "onnxruntime"}
    shape, folder = found["models"]
    assert shape["name"] == TINY
    assert folder["timed"] == "the encoder without its masked-language-model head"
    assert folder["disk"]["tokenizer"] > 0
    for model in found["models"]:
        assert [one["length"] for one in model["latency"]] == [4, 8]
        for one in (*model["latency"], *model["throughput"]):
            assert one["passes"] == 3
            assert 0 < one["seconds"]["p50"] <= one["seconds"]["p95"]
        for one in model["throughput"]:
            assert one["sequences_per_second"] == pytest.approx(2 / one["seconds"]["p50"])
            assert one["tokens_per_second"] == one["length"] * one["sequences_per_second"]
    expected = folder["parameters"]["total"] / shape["parameters"]["total"]
    assert found["ratios"]["parameters"]["total"] == pytest.approx(expected)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    said = capsys.readouterr().out
    assert f"{shape['parameters']['total']:,}" in said
    assert "ratio: how many times smaller or faster" in said


def test_one_fine_tuned_model_alone(tokenizer, tmp_path, no_child, capsys):
    save_tiny(tmp_path / "run" / "seed-0" / "model", tokenizer, dev=0.1)
    save_tiny(tmp_path / "run" / "seed-1" / "model", tokenizer, seed=1, dev=0.2)
    plot = tmp_path / "p.png"
    main(["--model", str(tmp_path / "run"), *QUICK, "--plot", str(plot)])
    said = capsys.readouterr()
    assert "seed-1/model, of 2 seeds the best on dev" in said.err
    assert "all of XLMRobertaForSequenceClassification" in said.out
    assert "ratio" not in said.out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_student_of_a_distillation_run_is_found(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "run" / "student")
    assert find(str(tmp_path / "run")).folder == tmp_path / "run" / "student"


def test_what_is_timed_is_the_model(teacher_folder):
    model = find(str(teacher_folder))
    ids, mask = sample(model, 2, 5)
    assert ids.min() >= 2
    assert not (ids == model.config.pad_token_id).any()
    found = open_model(model, CPU, 1)(ids, mask)
    reference = model.kind.from_pretrained(teacher_folder).eval().base_model
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids))[0]
    torch.testing.assert_close(found, expected)
    masked = mask.copy()
    masked[:, 3:] = 0
    assert not np.allclose(open_model(model, CPU, 1)(ids, masked)[:, 0], expected[:, 0])


def save_graph(folder, *inputs):
    """An embedding of 120 pieces, averaged under the mask, as ONNX."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = np.arange(240, dtype=np.float32).reshape(120, 2)
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=kind.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["weight"]),
        helper.make_node("Mul", ["found", "weight"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind.INT64, ["b", "s"]) for name in inputs],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["b", 2])],
        [
            onnx.numpy_helper.from_array(weights, "table"),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "first"),
        ],
    )
    folder.mkdir(exist_ok=True)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    tiny_model("bert").config.save_pretrained(folder)
    return weights


def test_an_onnx_model_is_run_by_onnxruntime(tmp_path, no_child, capsys):
    table_V2 = save_graph(tmp_path / "graph", "input_ids", "attention_mask", "token_type_ids")
    model = find(str(tmp_path / "graph"))
    ids, mask = sample(model, 3, 6)
    mask[:, 4:] = 0
    (found,) = open_model(model, CPU, 1)(ids, mask)
    np.testing.assert_array_equal(found, table_V2[ids[:, :4]].sum(1))
    size = (tmp_path / "graph" / "model.onnx").stat().st_size
    assert disk_of(model, 1).weights == size
    main(["--model", str(tmp_path / "graph"), *QUICK])
    assert "onnxruntime" in capsys.readouterr().out


def test_an_onnx_model_with_other_inputs_is_refused(tmp_path):
    save_graph(tmp_path / "graph", "input_ids", "attention_mask", "pixel_values")
    with pytest.raises(ValueError, match=r"model\.onnx wants pixel_values; only"):
        open_model(find(str(tmp_path / "graph")), CPU, 1)


def test_memory_of_a_model_in_a_process_of_its_own():
    model = find("shape:1x256,4,256,40000")
    weights = 4 * parameters_of(model.skeleton()).total
    found = resident_of(model, 8, 1, CPU)
    if found.loaded is None:
        pytest.skip("this system does not say what a process holds")
    assert 0.9 * weights < found.loaded < 2 * weights
    assert found.loaded <= found.peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "shape:huge"], r"--model: got shape:huge, expected shape:LAYERSxHIDDEN"),
        (["--model", "shape:2x30,4,8,99"], r"--model: got shape:2x30,4,8,99, expected sizes"),
        (["--model", TINY + ":nose"], r"--model: got shape:2x32,4,48,120:nose, expected"),
        (["--model", "nowhere"], r"--model: nowhere is not a folder"),
        (["--model", TINY, "--against", "nowhere"], r"--against: nowhere is not a folder"),
        (["--model", TINY, "--lengths", "0"], r"--lengths: got 0, expected 1 or more"),
        (["--model", TINY, "--batch", "0"], r"--batch: got 0, expected 1 or more"),
        (["--model", TINY, "--threads", "0"], r"--threads: got 0, expected 1 or more"),
        (["--model", TINY, "--seconds", "0"], r"--seconds: got 0\.0, expected a number above 0"),
        (["--model", TINY, "--lengths", "513"], r"--lengths: got 513, but shape.* 512 tokens"),
        (["--model", TINY, "--plot", "p.pdf"], r"--plot: got p\.pdf, expected a name that ends"),
        (["--model", TINY, "--json", "p.svg", "--plot", "p.svg"], r"--plot: p\.svg is the file of"),
        (["--model", TINY, "--json", "no/p.json"], r"--json: .*/no is not a folder"),
        (["--model", TINY, "--device", "toaster"], r"--device: got 'toaster', which cannot"),
        (["--against", TINY], r"arguments are required: --model; --help lists"),
        (["--model", TINY, "--speed", "9"], r"unrecognized arguments: --speed 9; --help"),
        (["--model", "shape:99x8192,8,32768,250002"], r"take 304\.9 GiB in float32, but this"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "p.json").write_text("mine")
    with pytest.raises(ValueError, match=r"p\.json exists; name another file"):
        main(["--model", TINY, "--json", str(tmp_path / "p.json")])
    assert (tmp_path / "p.json").read_text() == "mine"


def test_a_folder_without_weights_is_refused(tmp_path):
    tiny_model("bert").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds neither model\.onnx nor weights in safetensors"):
        find(str(tmp_path))


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    tiny_model("bert").config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"--against: cannot load .*"):
        open_model(find(str(tmp_path)), CPU, 1, flag="--against")


def test_a_process_that_was_killed_says_why(monkeypatch):
    class Done:
        returncode, stdout, stderr = -9, "", ""

    monkeypatch.setattr("comet.profiles.resident.subprocess.run", lambda *_, **__: Done)
    with pytest.raises(ValueError, match=r"most likely because memory ran out"):
        resident_of(find(TINY), 8, 1, CPU)


def test_the_command_of_projections_is_still_there(capsys):
    command.main(["--projection", "--length", "8"])
    assert "dense" in capsys.readouterr().out
