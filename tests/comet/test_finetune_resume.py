"""A fine-tuning run that is killed at several moments ends with the bytes of one that was not."""

import json
import signal
import time

from runs_in_processes import finish, start
from tiny_tasks import write_sentiment

PROGRAM = "comet.finetune"


def done(folder):
    record = folder / "run.json"
    return record.is_file() and json.loads(record.read_text())["state"] == "done"


def timeless(file):
    timed = ("tokens_per_second", "peak_memory")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def kill_once(process, reached):
    """Kill it as soon as something is reached; whether it lived until then."""
    while process.is_alive() and not reached():
        time.sleep(0.002)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_run_killed_between_and_within_seeds_ends_with_the_same_bytes(teacher_folder, tmp_path):
    # what is learnt is wrong on dev: the best weights are from before the run is killed
    data = write_sentiment(tmp_path / "data", splits={"train": 60, "dev": 20}, misled=True)
    arguments = [
        "--model", str(teacher_folder), "--data", str(data), "--languages", "hau,swa", "--seeds", "0", "1",
        "--epochs", "3", "--batch-size", "10", "--learning-rate", "3e-3", "--model.max_length", "32",
        "--run.evaluate_every", "4", "--run.checkpoint_every", "3", "--run.log_every", "5",
        "--class-weights", "balanced",
    ]  # fmt: skip
    finish(
        [start([*arguments, "--output", str(tmp_path / "unbroken")], tmp_path / "a", PROGRAM)],
        tmp_path / "a",
    )
    run, log = tmp_path / "run", tmp_path / "b"

    moments = [
        lambda: (run / "seed-0" / "checkpoints" / "step-12").exists(),
        lambda: (run / "seed-0" / "model" / "comet.json").exists(),
        lambda: (run / "seed-1" / "metrics.jsonl").exists(),
        lambda: (run / "seed-1" / "checkpoints" / "step-27").exists(),
    ]
    killed = 0
    for number, moment in enumerate(moments):
        given = ["--resume"] if number else arguments
        killed += kill_once(start([*given, "--output", str(run)], log, PROGRAM), moment)
    assert killed == len(moments), log.read_text()
    before = (run / "seed-0" / "run.json").read_bytes()
    finish([start(["--resume", "--output", str(run)], log, PROGRAM)], log)

    assert json.loads((run / "seed-1" / "model" / "comet.json").read_text())["step"] < 27
    assert done(run)
    assert (run / "seed-0" / "run.json").read_bytes() == before
    for name in (
        "seed-0/model/model.safetensors", "seed-1/model/model.safetensors", "seed-1/model/comet.json",
        "seed-1/checkpoints/step-36/tensors.safetensors", "predictions/dev/seed-0.jsonl",
        "predictions/dev/seed-1.jsonl", "predictions/dev/record.json",
    ):  # fmt: skip
        assert (run / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        for seed in ("seed-0", "seed-1"):
            assert timeless(run / seed / name) == timeless(tmp_path / "unbroken" / seed / name)
