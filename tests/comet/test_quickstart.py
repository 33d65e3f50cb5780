import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForMaskedLM

from comet import distill, quickstart
from comet.configuration import read_recipe
from comet.processes import this_process
from comet.recipe import AdaptRecipe

TEACHER = {
    "model": {"layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16, "vocabulary_size": 400,
              "positions": 40},
    "corpus": {"paths": ["toy"], "languages": ["swa"], "max_length": 16, "held_out": 4},
    "optimisation": {"steps": 3, "batch_size": 8, "warmup_steps": 1},
}  # fmt: skip
SHORT = [
    "--student.layers", "1", "--student.hidden_size", "8", "--student.heads", "2",
    "--student.intermediate_size", "8", "--languages", "swa", "--corpus.held_out", "4",
    "--steps", "3", "--optimisation.warmup_steps", "1", "--batch-size", "8",
]  # fmt: skip


@pytest.fixture
def tiny_teacher(monkeypatch, tmp_path):
    monkeypatch.setenv("COMET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quickstart, "read_recipe", lambda *_: TEACHER)


def test_teacher_and_twin_are_trained_once_and_compared(tiny_teacher, tmp_path, capfd):
    distill.main(["--fused", *SHORT, "--output", str(tmp_path / "first")])
    first = capfd.readouterr().out
    assert "training the toy teacher, once" in first
    assert "training the same student without a teacher, once" in first
    assert "undistilled student" in first
    assert str(tmp_path / "first" / "student") in first
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    following = [line.strip() for line in first.split("Next, ")[1].splitlines()[1:]]
    commands = [line for line in following if line.startswith("python")]
    assert len(commands) == 3
    assert all(f"    {command}" in readme for command in commands)
    assert "warning" not in first
    twin = next((tmp_path / "cache").glob("undistilled-*"))
    shapes = [
        {
            name: value.shape
            for name, value in AutoModelForMaskedLM.from_pretrained(path).named_parameters()
        }
        for path in (twin / "model", tmp_path / "first" / "student")
    ]
    assert shapes[0] == shapes[1]
    distill.main(["--fused", *SHORT, "--output", str(tmp_path / "second")])
    assert "once" not in capfd.readouterr().out
    names = ("student/model.safetensors", "agreement.json")
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert json.loads((tmp_path / "second" / "run.json").read_text())["state"] == "done"


def test_a_failed_training_leaves_nothing_in_the_cache(tiny_teacher, monkeypatch, tmp_path, capfd):
    spoilt = {**TEACHER, "model": {**TEACHER["model"], "vocabulary_size": 900_000}}
    monkeypatch.setattr(quickstart, "read_recipe", lambda *_: spoilt)
    with pytest.raises(ValueError, match=r"training failed in .*, see above; COMET_CACHE"):
        quickstart.toy_teacher()
    assert not list((tmp_path / "cache").glob("*/model"))
    assert "vocabulary_size: got 900000" in capfd.readouterr().err


def test_a_half_trained_teacher_is_trained_again(tiny_teacher, monkeypatch):
    def trained(command, check, env):
        folder = Path(command[command.index("--output") + 1])
        assert not folder.exists()
        (folder / "model").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"state": states.pop()}))
        return SimpleNamespace(returncode=0)

    states = ["done", "running"]
    monkeypatch.setattr(quickstart.subprocess, "run", trained)
    for _ in range(3):
        quickstart.toy_teacher()
    assert states == [], "trained twice: the first time it was left half done"


def test_another_recipe_is_another_teacher(monkeypatch, tmp_path):
    monkeypatch.setenv("COMET_CACHE", str(tmp_path))
    this_process()  # alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []

    def run(command, check, env):
        assert "WORLD_SIZE" not in env  # it trains alone
        assert "PATH" in env
        made.append(command)
        return _Failed()

    monkeypatch.setattr(quickstart.subprocess, "run", run)
    for steps in (3, 4):
        content = {**TEACHER, "optimisation": {**TEACHER["optimisation"], "steps": steps}}
        monkeypatch.setattr(quickstart, "read_recipe", lambda *_, content=content: content)
        with pytest.raises(ValueError, match="training failed"):
            quickstart.toy_teacher()
    assert len(made) == 2
    assert made[0][-1] != made[1][-1]
    assert read_recipe(AdaptRecipe, "toy-teacher") != TEACHER


class _Failed:
    returncode = 1
