"""One process, two processes and accumulation give the same losses and the same weights."""

import json
import os
import shutil
import signal
import time

import pytest
import yaml
from runs_in_processes import finish, start, start_several
from safetensors.torch import load_file
from tiny import TINY_RUN

COMMON = [
    *TINY_RUN, "--fused", "--steps", "6", "--batch-size", "16", "--student.dropout", "0",
    "--run.evaluate_every", "4",
]  # fmt: skip
OPTIONS = {
    "row": ["--objective.attention_reduction", "row"],
    "budget-muon": [
        "--optimisation.batch_tokens", "256", "--optimisation.muon_learning_rate", "0.02",
    ],
    "two-streams": ["--corpus.streams", "2"],
}  # fmt: skip


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def require_close(run, expected):
    for line, other in zip(
        lines_of(run / "metrics.jsonl"), lines_of(expected / "metrics.jsonl"), strict=True
    ):
        assert line.keys() == other.keys()
        for name in line.keys() - {"tokens_per_second", "peak_memory"}:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name
    ours, theirs = (load_file(one / "student/model.safetensors") for one in (run, expected))
    for name, value in theirs.items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding, which AdamW enlarges
            assert (ours[name] - value).abs().max() <= 1e-4
        else:
            assert (ours[name] - value).norm() <= 1e-5 * value.norm(), name


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


def test_two_processes_skip_and_diverge_together(teacher_folder, corpus_folder, tmp_path):
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *COMMON]
    given += ["--optimisation.learning_rate", "1e30", "--optimisation.warmup_steps", "0"]
    log = tmp_path / "log"
    two = start_several([*given, "--output", str(tmp_path / "run")], log, 2)
    for process in two:
        process.join(60)
    assert [process.exitcode for process in two] == [2, 2]
    said = log.with_suffix(".0").read_text()
    assert said.count("training diverged: ") == 1
    assert "after step 4; start a run with a lower learning rate (now 1e+30)" in said
    assert "Traceback" not in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["state"], record["skipped_steps"]) == ("failed", 3)


def test_two_processes_stop_together_and_one_goes_on(teacher_folder, corpus_folder, tmp_path):
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *COMMON]
    given[given.index("--steps") + 1] = "30"
    run, log = tmp_path / "run", tmp_path / "log"
    finish([start([*given, "--output", str(tmp_path / "one")], log)], log)
    two = start_several([*given, "--output", str(run)], log, 2)
    while all(process.is_alive() for process in two) and not (run / "checkpoints/step-3").exists():
        time.sleep(0.005)
    os.kill(two[1].pid, signal.SIGTERM)
    for process in two:
        process.join(60)
    assert [process.exitcode for process in two] == [130, 143], log.with_suffix(".0").read_text()
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    finish([start(["--resume", "--output", str(run)], log)], log)
    require_close(run, tmp_path / "one")


def test_a_teacher_is_adapted_by_two_processes_as_by_one(corpus_folder, tmp_path):
    given = [
        "--corpus", str(corpus_folder), "--model.vocabulary_size", "200", "--model.layers", "2",
        "--model.hidden_size", "16", "--model.heads", "2", "--model.intermediate_size", "24",
        "--model.positions", "40", "--corpus.max_length", "24", "--corpus.held_out", "8",
        "--corpus.workers", "0", "--warm_start.steps", "3", "--warm_start.max_length", "12",
        "--warm_start.batch_size", "16", "--steps", "5", "--batch-size", "8",
        "--optimisation.warmup_steps", "1", "--run.log_every", "1",
    ]  # fmt: skip
    log = tmp_path / "log"
    one = start([*given, "--output", str(tmp_path / "one")], log, "comet.adapt")
    finish([one], log)
    two = start_several([*given, "--output", str(tmp_path / "two")], log, 2, "comet.adapt")
    finish(two, log)
    ours, theirs = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    for line, other in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["loss/hau"] == pytest.approx(other["loss/hau"], rel=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_a_process_that_holds_nothing_of_a_term_changes_no_loss(tmp_path, count):
    log = tmp_path / "log"
    finish(start_several([], log, count, "terms_in_processes"), log)
    assert log.with_suffix(".0").read_text().endswith("same\n")


STUDENT_GRID = {
    "title": "One cell",
    "cells": {"alone": {"model": "tfidf"}},
    "seeds": [0],
}
TUNED = [
    "--languages",
    "hau",
    "swa",
    "--model.max_length",
    "24",
    "--epochs",
    "1",
    "--batch-size",
    "16",
]


@pytest.fixture
def machine(tmp_path, teacher_folder, sentiment):
    """The folder that the main process works in: what it reads is here, but for text, and what it writes."""
    for name, source in (("teacher", teacher_folder), ("data", sentiment)):
        shutil.copytree(source, tmp_path / "machine-0" / name)
    (tmp_path / "machine-0" / "grid.yaml").write_text(yaml.safe_dump(STUDENT_GRID))
    (tmp_path / "machine-0" / "recipe.yaml").write_text(
        "optimisation: {steps: 3, warmup_steps: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_commands_end_well_where_the_first_machine_alone_has_folders_and_data(
    machine, corpus_folder, count
):
    text = ["--corpus", str(corpus_folder)]
    distil = [*text, "--teacher", "teacher", *TINY_RUN, "--recipe", "recipe.yaml"]
    tune = ["comet.finetune", "--data", "data", *TUNED]
    commands = [
        ["comet.distill", *distil, "--output", "student"],
        ["comet.distill", "--resume", "--output", "student"],
        [*tune, "--model", "student/student", "--seeds", "0,1", "--output", "tuned"],
        [*tune, "--model", "teacher", "--teacher", "tuned", "--per-language", "--output", "each"],
        ["comet.evaluate", "--run", "each", "--teacher", "tuned", "--floor", "tfidf"],
        ["comet.cache_teacher", *distil, "--output", "cache"],
        ["comet.initialise", *distil, "--output", "initial"],
        ["comet.trim", "--model", "teacher", *text, "--size", "150", "--output", "small"],
        ["comet.experiment", "grid.yaml", "--data", "data", "--set", "finetune.task.languages=[hau]",
         "--output", "grid"],
    ]  # fmt: skip
    (machine / "commands.json").write_text(json.dumps(commands))
    log = machine / "log"
    arguments = [str(machine / "commands.json")]
    finish(start_several(arguments, log, count, "commands_in_processes"), log, timeout=280)
    main = machine / "machine-0"
    for run in ("student", "tuned", "tuned/seed-1", "each", "each/seed-0/hau"):
        assert json.loads((main / run / "run.json").read_text())["state"] == "done"
    scores = json.loads((main / "each" / "scores-test.json").read_text())
    assert scores["languages"].keys() == {"hau", "swa"}
    assert scores["retention"] is not None
    assert json.loads((main / "cache" / "index.json").read_text())["complete"]
    assert (main / "grid" / "table.md").is_file()
    for rank in range(1, count):
        assert not list((machine / f"machine-{rank}").iterdir())
        said = log.with_suffix(f".{rank}").read_text().splitlines()
        assert [line for line in said if not line.startswith("$")] == []


def test_what_one_process_lacks_it_says_alone_and_the_others_end(machine, corpus_folder):
    shutil.copytree(corpus_folder, machine / "machine-0" / "text")
    arguments = ["--teacher", "teacher", "--corpus", "text", *TINY_RUN, "--steps", "3"]
    (machine / "commands.json").write_text(json.dumps([["comet.distill", *arguments]]))
    log = machine / "log"
    two = start_several([str(machine / "commands.json")], log, 2, "commands_in_processes")
    for process in two:
        process.join(60)
    assert [process.exitcode for process in two] == [2, 2]
    said = [log.with_suffix(f".{rank}").read_text() for rank in range(2)]
    assert "error" not in said[0]
    (line,) = said[1].splitlines()[1:]
    assert line.startswith("comet.distill: error: corpus: text does not exist")


def test_what_is_wrong_for_all_processes_is_said_once(tmp_path):
    log = tmp_path / "log"
    two = start_several(["--batch-size", "-1", "--output", str(tmp_path / "run")], log, 2)
    for process in two:
        process.join(60)
    assert [process.exitcode for process in two] == [2, 2]
    said = "".join(log.with_suffix(f".{rank}").read_text() for rank in range(2))
    assert said.count("error: ") == said.count("optimisation.batch_size: got -1") == 1


@pytest.mark.parametrize("dead", [0, 1])
def test_one_process_killed_ends_the_other_with_a_line_and_resuming_changes_nothing(
    teacher_folder, corpus_folder, tmp_path, dead
):
    """With dropout, whose generators are each process's own."""
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *COMMON]
    given[given.index("--steps") + 1] = "30"
    given[given.index("--student.dropout") + 1] = "0.1"
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    finish(start_several([*given, "--output", str(whole)], log, 2), log)
    two = start_several([*given, "--output", str(run)], log, 2)
    while all(one.is_alive() for one in two) and not (run / "checkpoints/step-6").exists():
        time.sleep(0.005)
    os.kill(two[dead].pid, signal.SIGKILL)
    two[1 - dead].join(60)
    assert two[1 - dead].exitcode == 1
    said = [log.with_suffix(f".{rank}").read_text().splitlines() for rank in range(2)]
    line = (
        f"comet.distill: error: process {dead} of 2 died (killed, or out of memory); resume with: "
        f"python -m comet.distill --resume --output {run}"
    )
    assert said[1 - dead][-1] == line
    assert not any("Traceback" in one for some in said for one in some)
    if dead == 1:
        record = json.loads((run / "run.json").read_text())
        assert record["state"] == "failed"
        assert record["why"] == "process 1 of 2 died (killed, or out of memory)"
    finish(start_several(["--resume", "--output", str(run)], log, 2), log)
    require_close(run, whole)
