import pytest
import torch
from tiny import tiny_model

from comet import checkpoints
from comet.checkpoints import (
    load_checkpoint,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
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


def test_a_failure_half_way_leaves_the_one_before_and_no_remains(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_synchronise", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert load_checkpoint(tmp_path / "step-1")[1] == {"step": 1}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_recognised(tmp_path, name):
    path = save(tmp_path, 3)
    (path / name).write_bytes((path / name).read_bytes()[:5])
    with pytest.raises(ValueError, match=r"step-3 cannot be read .* delete that folder"):
        load_checkpoint(path)


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
