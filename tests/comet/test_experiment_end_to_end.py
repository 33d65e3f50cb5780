"""A student and its twin by the real commands, tiny: every stage's recipe and flags are understood."""

import json

import pytest
import yaml

from comet import experiment

LABELS = ("negative", "neutral", "positive")
GRID = {
    "distill": {
        "corpus": {"max_length": 16, "held_out": 4, "workers": 0},
        "optimisation": {"steps": 12, "batch_size": 4, "warmup_steps": 2},
        "run": {"log_every": 4},
    },
    "mlm": {"warm_start": {"steps": 4, "max_length": 8, "batch_size": 4}},
    "finetune": {
        "task": {"task": "afrisenti", "languages": ["hau", "swa"]},
        "model": {"max_length": 16},
        "optimisation": {"epochs": 1, "batch_size": 8},
    },
    "seeds": [0, 1],
    "evaluate": {"split": "test", "unseen": ["pcm"]},
    "published": "afrisenti",
    "cells": {"student": {}, "twin": {"model": "mlm"}},
}


@pytest.fixture
def labelled(tmp_path):
    folder = tmp_path / "afrisenti"
    for language in ("hau", "swa", "pcm"):
        (folder / language).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            rows = [f"{language} {split} number {row}\t{LABELS[row % 3]}" for row in range(12)]
            (folder / language / f"{split}.tsv").write_text(
                "\n".join(["tweet\tlabel", *rows]) + "\n"
            )
    return folder


@pytest.mark.slow
def test_the_real_commands(tmp_path, teacher_folder, corpus_folder, labelled, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    grid = tmp_path / "tiny.yaml"
    grid.write_text(yaml.safe_dump(GRID))
    output = tmp_path / "experiment"
    arguments = [
        str(grid), "--teacher", str(teacher_folder), "--corpus", str(corpus_folder),
        "--data", str(labelled), "--output", str(output),
    ]  # fmt: skip
    experiment.main(arguments)
    found = json.loads((output / "experiment.json").read_text())
    student, twin = found["cells"]
    for cell in (student, twin):
        assert cell["state"] == "done", cell["why"]
        assert cell["scores"]["seeds"] == [0, 1]
        assert cell["scores"]["languages"].keys() == {"hau", "swa", "pcm"}
        assert not cell["scores"]["languages"]["pcm"]["trained"]
    assert found["measure"] == "weighted_f1"
    assert twin["difference"]["low"] <= twin["difference"]["mean"] <= twin["difference"]["high"]
    budget = twin["budget"]
    assert (
        budget["steps"]
        == json.loads((output / "cells/twin/mlm/metrics.jsonl").read_text().splitlines()[-1])[
            "step"
        ]
    )
    table = (output / "table.md").read_text()
    assert "| AfroXLMR-large, 560 M (published) |" in table
    before = {path: path.stat().st_mtime_ns for path in output.glob("cells/*/*.log")}
    experiment.main(arguments)
    assert before == {path: path.stat().st_mtime_ns for path in output.glob("cells/*/*.log")}
