import importlib.util
import json
import struct
from pathlib import Path

import pytest
from accelerate import Accelerator

from comet import trackers
from comet.configuration import build
from comet.recipe import DistillRecipe
from comet.trackers import Trackers, flat

RECIPE = build(
    DistillRecipe,
    {"teacher": {"model": "t"}, "corpus": {"paths": ["a", "b"]}, "objective": {"alpha": 0.25}},
)
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


@pytest.fixture
def offline(monkeypatch):
    """W&B without its server, and without what it would ask this machine about."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def line(step, loss):
    return {
        "step": step, "tokens": 640, "loss": loss, "kd": 2 * loss, "kd/hau": 3.0, "lr": 1e-3,
        "tokens_per_second": 100.5, "peak_memory": 2**20,
    }  # fmt: skip


def started(names, folder, step=0):
    found = Trackers(names, folder)
    found.start(Accelerator(), RECIPE, step)
    return found


def scalars(folder):
    """Tag → step → value, as TensorBoard reads the run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


@needs_tensorboard
def test_tensorboard_reads_back_what_was_sent(tmp_path):
    found = started(["tensorboard"], tmp_path)
    found.log_evaluation(0, {"hau": {"kl": 7.5, "pseudo_perplexity": None}})
    found.log(line(10, 5.0))
    found.log(line(20, 4.0))
    found.log_evaluation(20, {"hau": {"kl": 6.5, "top1": 0.25}, "all": {"kl": 6.0}})
    found.close()
    assert scalars(tmp_path) == {
        "train/tokens": {10: 640.0, 20: 640.0},
        "train/loss": {10: 5.0, 20: 4.0},
        "train/kd": {10: 10.0, 20: 8.0},
        "train/kd/hau": {10: 3.0, 20: 3.0},
        "train/lr": pytest.approx({10: 1e-3, 20: 1e-3}),
        "machine/tokens_per_second": {10: 100.5, 20: 100.5},
        "machine/peak_memory": {10: 2.0**20, 20: 2.0**20},
        "held-out/hau/kl": {0: 7.5, 20: 6.5},
        "held-out/hau/top1": {20: 0.25},
        "held-out/all/kl": {20: 6.0},
    }
    (config,) = tmp_path.glob("tensorboard/*/hparams.yml")
    assert "objective.alpha: 0.25" in config.read_text()


@needs_tensorboard
def test_a_resumed_run_replaces_what_tensorboard_had_of_its_steps(tmp_path):
    first = started(["tensorboard"], tmp_path)
    for step in (10, 20, 30):
        first.log(line(step, 5.0))
    first.close()
    second = started(["tensorboard"], tmp_path, step=15)
    second.log(line(20, 4.0))
    second.close()
    assert scalars(tmp_path)["train/loss"] == {10: 5.0, 20: 4.0}


def records(path):
    """The protobuf records of W&B's offline file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def as_dict(items):
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}


def test_wandb_offline_keeps_everything_under_one_id(offline, tmp_path):
    first = started(["wandb"], tmp_path)
    first.log(line(10, 5.0))
    first.log_evaluation(10, {"hau": {"kl": 6.5, "pseudo_perplexity": None}})
    first.close()
    identity = json.loads((tmp_path / "tracking.json").read_text())["wandb"]
    (path,) = tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb")
    config, history = {}, {}
    for record in records(path):
        config |= as_dict(record.config.update)
        history |= as_dict(record.history.item)
    assert config["objective.alpha"] == 0.25
    assert history["_step"] == 10
    assert history["train/loss"] == 5.0
    assert history["held-out/hau/kl"] == 6.5
    assert "held-out/hau/pseudo_perplexity" not in history
    second = started(["wandb"], tmp_path, step=10)
    assert offline.run.id == identity
    assert offline.run.project == "comet-distill"
    second.close()


def test_wandb_that_cannot_start_ends_with_one_line(offline, monkeypatch, tmp_path):
    def init(**_):
        raise offline.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(offline, "init", init)
    with pytest.raises(
        ValueError, match=r"run\.trackers: wandb: No API key configured; or set WANDB_"
    ) as e:
        started(["wandb"], tmp_path)
    assert "\n" not in str(e.value)


def test_other_errors_stay_what_they_are(monkeypatch, tmp_path):
    def init(*_):
        raise OSError("full")

    monkeypatch.setattr(Accelerator, "init_trackers", init)
    with pytest.raises(OSError, match="full"):
        started([], tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(name, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "versions", lambda names: dict.fromkeys(names))
    with pytest.raises(
        ValueError, match=rf"^run\.trackers: {name} is not installed; pip install {name}, or"
    ):
        Trackers([name], tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_trackers_nothing_happens(tmp_path):
    found = started([], tmp_path)
    found.log(line(10, 5.0))
    found.log_evaluation(10, {"hau": {"kl": 6.5}})
    found.close()
    Trackers([], Path("nowhere")).close()
    Trackers([], Path("nowhere")).log(line(1, 1.0))
    assert not list(tmp_path.iterdir())


def test_the_flat_recipe_has_plain_values_only():
    found = flat(RECIPE)
    assert found["objective.alpha"] == 0.25
    assert found["corpus.paths"] == '["a", "b"]'
    assert found["student.model"] is None
    assert all(
        value is None or isinstance(value, (bool, int, float, str)) for value in found.values()
    )
