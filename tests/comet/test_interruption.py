import json
import os
import signal
import time

import pytest
from runs_in_processes import finish, start
from tiny import TINY_RUN

from comet.interruption import StopSignals


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received
        assert signals.code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_and_says_how_to_go_on(
    teacher_folder, corpus_folder, tmp_path, number, code
):
    run, log = tmp_path / "run", tmp_path / "log"
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    process = start([*given, "--fused", "--steps", "500", "--output", str(run)], log)
    while process.is_alive() and not (run / "checkpoints" / "step-6").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code, log.read_text()
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "stopped"
    last = log.read_text().splitlines()[-1]
    step = max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())
    assert last == (
        f"comet.distill: stopped and saved at step {step}; go on with: "
        f"python -m comet.distill --resume --output {run}"
    )
    assert not (run / "student").exists()
    again = start(["--resume", "--output", str(run)], log)
    while again.is_alive() and f"resuming at step {step}" not in log.read_text():
        time.sleep(0.01)
    os.kill(again.pid, signal.SIGKILL)
    again.join()
    assert f"resuming at step {step}" in log.read_text()


def test_one_folder_holds_one_run_at_a_time(teacher_folder, corpus_folder, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    first = start([*given, "--steps", "500", "--output", str(run)], log)
    while first.is_alive() and not (run / "checkpoints" / "step-3").exists():
        time.sleep(0.01)
    second = start(["--resume", "--output", str(run)], tmp_path / "second")
    second.join(60)
    first.kill()
    first.join()
    assert second.exitcode == 2
    said = (tmp_path / "second").read_text().splitlines()
    assert said[-1] == (f"comet.distill: error: --output: another process is training in {run}")
    with pytest.raises(AssertionError):  # what `finish` is for: it shows what went wrong
        finish([second], tmp_path / "second")
