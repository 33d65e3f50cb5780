import json
import random

import numpy as np
import pytest
import torch
from tiny import tiny_model

import comet
from comet import checkpoints
from comet.checkpoints import (
    load_checkpoint,
    load_chosen,
    module_tensors,
    optimizer_tensors,
    random_tensors,
    restore_module,
    restore_optimizer,
    restore_random,
    save_checkpoint,
)


def save(folder, step, keep=2):
    return save_checkpoint(folder, step, {"a": torch.full((2,), step)}, {"step": step}, keep)


def test_the_newest_stay_and_load(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["step-10", "step-100"]
    tensors, state = load_checkpoint(tmp_path / "step-100")
    assert tensors["a"].tolist() == [100, 100]
    assert state == {"step": 100}


@pytest.mark.parametrize(
    "at", ["checkpoints.save_file", "checkpoints.checksum", "durable.replace_folder"]
)
def test_a_full_disk_leaves_the_one_before_and_no_remains(tmp_path, monkeypatch, at):
    save(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"comet.{at}", full_disk)
    said = r"step-2: No space left on device; the last good checkpoint is step-1; .* --resume"
    with pytest.raises(OSError, match=said):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert load_checkpoint(tmp_path / "step-1")[1] == {"step": 1}


def test_remains_of_a_killed_save_are_cleared(tmp_path):
    (tmp_path / ".step-4.partial").mkdir()
    (tmp_path / ".step-4.partial" / "tensors.safetensors").write_text("half")
    save(tmp_path, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-6"]


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_offered(tmp_path, name, damage):
    save(tmp_path, 3)
    path = save(tmp_path, 6) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        # a flipped bit in the middle of a tensor leaves a file that safetensors reads without complaint
        path.write_bytes(content[:5] if damage == "cut" else flipped(content, len(content) - 4))
    said = "checkpoint step-6 is damaged; go on from the one before it with --resume-from 3"
    with pytest.raises(ValueError, match=said):
        load_chosen(tmp_path, None)
    tensors, state = load_chosen(tmp_path, 3)
    assert (tensors["a"].tolist(), state) == ([3, 3], {"step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-6.set-aside"]


def test_the_only_checkpoint_damaged_is_said_and_a_missing_step_named(tmp_path):
    assert load_chosen(tmp_path, None) is None
    path = save(tmp_path, 3)
    with pytest.raises(
        ValueError, match=r"--resume-from: got 4, but the checkpoints .* are step-3"
    ):
        load_chosen(tmp_path, 4)
    (path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="there is none before it"):
        load_chosen(tmp_path, None)


def test_an_older_format_loads_and_a_newer_one_is_refused_by_the_version_that_wrote_it(tmp_path):
    path = save(tmp_path, 3) / "checksums.json"
    stored = json.loads(path.read_text())
    assert (stored["format"], stored["comet"]) == (2, comet.__version__)
    without = {name: sum for name, sum in stored.items() if name not in ("format", "comet")}
    path.write_text(json.dumps(without))  # as before there were formats
    assert load_checkpoint(tmp_path / "step-3")[1] == {"step": 3}
    path.write_text(json.dumps({"format": 3, "comet": "9.1", "files": "elsewhere"}))
    with pytest.raises(
        ValueError, match=r"step-3 has format 3, written by Comet 9\.1; this is Comet .* update it"
    ):
        load_chosen(tmp_path, None)
    path.write_text(json.dumps({**stored, "format": "two"}))
    with pytest.raises(ValueError, match="step-3 is damaged"):
        load_chosen(tmp_path, None)


def test_every_generator_comes_back():
    def draws():
        return (
            torch.rand(3).tolist(),
            np.random.standard_normal(3).tolist(),
            [random.gauss(0, 1) for _ in range(3)],
        )

    draws()
    saved = random_tensors(2)
    expected = draws()
    draws()
    restore_random(saved, 1)
    assert draws() != expected
    restore_random(saved, 2)
    assert draws() == expected


def test_module_and_optimizer_come_back_exactly(tmp_path):
    def trained():
        torch.manual_seed(0)
        model = tiny_model("xlm-r")
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
            optimizer.step()

    model, optimizer = trained()
    steps(model, optimizer, 2)
    save_checkpoint(
        tmp_path, 2, module_tensors(model) | optimizer_tensors(optimizer, "adamw"), {}, 1
    )
    steps(model, optimizer, 2)
    again, its_optimizer = trained()
    tensors, _ = load_checkpoint(tmp_path / "step-2")
    restore_module(again, tensors)
    restore_optimizer(its_optimizer, "adamw", tensors)
    steps(again, its_optimizer, 2)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="another shape"):
        restore_module(tiny_model("bert"), module_tensors(tiny_model("bert", 130)))
