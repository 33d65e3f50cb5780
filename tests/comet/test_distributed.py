"""One process, two processes and accumulation give the same losses and the same weights."""

import json

import pytest
import torch
from runs_in_processes import finish, start, start_several
from safetensors.torch import load_file
from tiny import TINY_RUN

COMMON = [
    *TINY_RUN, "--fused", "--steps", "6", "--batch-size", "16", "--student.dropout", "0",
    "--run.evaluate_every", "4",
]  # fmt: skip
OPTIONS = {
    "row": ["--objective.attention_reduction", "row"],
    "budget": ["--optimisation.batch_tokens", "256"],
    "two-streams": ["--corpus.streams", "2"],
}


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def require_close(run, expected):
    for line, other in zip(
        lines_of(run / "metrics.jsonl"), lines_of(expected / "metrics.jsonl"), strict=True
    ):
        assert line.keys() == other.keys()
        for name in line.keys() - {"tokens_per_second", "peak_memory"}:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name
    for name in ("student/model.safetensors", "checkpoints/step-6/tensors.safetensors"):
        ours, theirs = load_file(run / name), load_file(expected / name)
        for key in theirs:
            if "random/" in key or not theirs[key].is_floating_point():
                continue
            error = (ours[key] - theirs[key]).norm() / theirs[key].norm().clamp(min=1e-12)
            assert error <= 1e-5 or torch.equal(ours[key], theirs[key]), (name, key, error)


@pytest.mark.parametrize("option", OPTIONS)
def test_processes_and_accumulation_change_nothing(teacher_folder, corpus_folder, tmp_path, option):
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *COMMON]
    given += OPTIONS[option]
    runs = {name: tmp_path / name for name in ("one", "pieces", "two")}
    output = {name: ["--output", str(folder)] for name, folder in runs.items()}
    finish([start([*given, *output["one"]], tmp_path / "log-one")], tmp_path / "log-one")
    pieces = [*given, "--optimisation.accumulation", "4", *output["pieces"]]
    finish([start(pieces, tmp_path / "log-pieces")], tmp_path / "log-pieces")
    two = start_several([*given, *output["two"]], tmp_path / "log-two", 2)
    finish(two, tmp_path / "log-two")
    require_close(runs["pieces"], runs["one"])
    require_close(runs["two"], runs["one"])
