"""TF-IDF's labels in fine-tuning: taken, kept for a resume, and shared with other runs."""

import json
import shutil

import pytest
from safetensors.numpy import load_file
from tiny_tasks import recipe_for

from comet import finetune
from comet.finetune import finetune as run_finetune
from comet.floor import Lessons, save_floor


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_floor_teaches_and_says_the_same_after_a_resume(teacher_folder, sentiment, tmp_path):
    recipe = recipe_for(teacher_folder, sentiment, floor_weight=0.7, floor_mixtures=0.5, epochs=1)
    run_finetune(recipe, tmp_path / "run")
    kept = load_file(tmp_path / "run/floor.safetensors")
    assert {name: found.shape for name, found in kept.items()} == {
        "hau": (120, 3),
        "hau/mixtures": (60, 3),
        "swa": (120, 3),
        "swa/mixtures": (60, 3),
    }
    assert (
        json.loads((tmp_path / "run/seed-0/run.json").read_text())["steps"] == 23
    )  # of 360 texts, 16 a step
    logged = lines(tmp_path / "run/seed-0/metrics.jsonl")[0]
    assert {"labels", "floor"} <= logged.keys()
    shutil.rmtree(tmp_path / "run/seed-0")
    (tmp_path / "run/run.json").write_text('{"state": "interrupted"}')
    other = {
        name: Lessons(kept[name][:, ::-1], [], kept[f"{name}/mixtures"][:, ::-1])
        for name in ("hau", "swa")
    }
    save_floor(other, tmp_path / "run/floor.safetensors")
    run_finetune(recipe, tmp_path / "run", resume=True)
    assert lines(tmp_path / "run/seed-0/metrics.jsonl")[0]["floor"] != logged["floor"]


def test_a_floor_that_was_fitted_once_is_taken_by_other_runs(
    teacher_folder, sentiment, tmp_path, monkeypatch, capsys
):
    recipe = recipe_for(teacher_folder, sentiment, floor_weight=0.7, epochs=1)
    run_finetune(recipe, tmp_path / "first")
    monkeypatch.setattr(finetune, "fit_floor", None)
    run_finetune(recipe, tmp_path / "second")
    assert "TF-IDF's labels from" in capsys.readouterr().out
    first, second = (
        load_file(tmp_path / name / "floor.safetensors") for name in ("first", "second")
    )
    assert all((first[name] == second[name]).all() for name in first)
    with pytest.raises(TypeError, match="NoneType"):  # other mixtures are other labels
        run_finetune(
            recipe_for(teacher_folder, sentiment, floor_weight=0.7, floor_mixtures=1.0),
            tmp_path / "third",
        )


def test_words_have_no_floor(teacher_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"objective\.floor_weight: got 1\.0, expected 0, as TF-IDF"
    ):
        recipe_for(teacher_folder, tmp_path, task="masakhaner", floor_weight=1.0)
