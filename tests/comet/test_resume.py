"""A run that is killed, however often and wherever, ends with the weights and metrics of one that was not.

Its text is streamed and tokenised by a background process, and its student drops units out: all that has a state.
"""

import json
import random
import signal
import time

import pytest
from runs_in_processes import finish, start
from tiny import TINY_RUN

STEPS = 60
KILLS = 12


@pytest.fixture(scope="module")
def arguments(teacher_folder, corpus_folder):
    return [
        "--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN, "--fused",
        "--steps", str(STEPS), "--run.checkpoint_every", "2", "--run.log_every", "5",
        "--run.evaluate_every", "7", "--student.dropout", "0.1",
        "--corpus.in_memory", "0", "--corpus.shuffle_buffer", "100", "--corpus.workers", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    started = time.perf_counter()
    process = start([*arguments, "--output", str(folder / "run")], folder / "log")
    finish([process], folder / "log")
    return folder / "run", time.perf_counter() - started


def lines_of(file):
    """Logged lines without what depends on the clock."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    timed = ("tokens_per_second", "peak_memory")
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def require_same(run, other):
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        assert lines_of(run / name) == lines_of(other / name)
    for name in (
        "student/model.safetensors",
        "agreement.json",
        f"checkpoints/step-{STEPS}/tensors.safetensors",
    ):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def is_done(run):
    record = run / "run.json"
    return record.exists() and json.loads(record.read_text())["state"] == "done"


def newest(run):
    return max(
        (int(path.name[5:]) for path in (run / "checkpoints").glob("step-?*[0-9]")), default=0
    )


def test_runs_killed_a_dozen_times_end_with_the_same_weights_and_metrics(
    arguments, unbroken, tmp_path
):
    """A third each: while a run starts, some time after a checkpoint, and at some point within a save.

    A run that ends before it is killed is compared, and another one is begun.
    """
    expected, seconds = unbroken
    moments = random.Random(5)
    reached: list[int] = []
    run, log = tmp_path / "run-0", tmp_path / "log"
    while len(reached) < KILLS:
        given = ["--resume"] if (run / "recipe.yaml").exists() else arguments
        kind = len(reached) % 3
        within_a_save = {"KILLED_AT_FSYNC": str(moments.randint(2, 11))} if kind == 2 else {}
        process = start([*given, "--output", str(run)], log, **within_a_save)
        if kind == 0:
            process.join(moments.uniform(0, 0.5) * seconds)
        elif kind == 1:
            before = newest(run)
            while process.is_alive() and newest(run) == before:
                time.sleep(0.001)
            process.join(moments.uniform(0, 0.05))
        if not within_a_save:
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        if process.exitcode:
            reached.append(newest(run))
        if is_done(run):
            require_same(run, expected)
            run = tmp_path / f"run-{run.name}"
    given = ["--resume"] if (run / "recipe.yaml").exists() else arguments
    finish([start([*given, "--output", str(run)], log)], log)
    assert len(set(reached)) >= 5, reached
    require_same(run, expected)
