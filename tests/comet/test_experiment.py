"""Experiments of stand-in stages: what runs, in which order, how often, and what is told of it."""

import json
import os
import re
import shutil
import time
from collections import Counter
from datetime import datetime

import experiment_of_stand_ins
import huggingface_hub
import pytest
import yaml
from runs_in_processes import finish, start

from comet.experiments import schedule
from comet.experiments.budget import training_seconds
from comet.experiments.stage import Lock, Stage, read_json, record_end

GRID = {
    "title": "Terms",
    "distill": {
        "student": {"layers": 1, "hidden_size": 8, "heads": 2, "intermediate_size": 8},
        "corpus": {"max_length": 32},
        "optimisation": {"steps": 100, "warmup_steps": 80},
    },
    "finetune": {
        "task": {"data": "somewhere", "languages": ["hau", "yor"]},
        "model": {"max_length": 32},
    },
    "seeds": [0, 1],
    "cells": {
        "both": {},
        "KL only": {"distill.objective.alpha": 1.0},
        "MLM": {"model": "mlm"},
        "TF-IDF": {"model": "tfidf"},
        "teacher": {"model": "teacher"},
    },
}
STUDENTS = {**GRID, "cells": {name: GRID["cells"][name] for name in ("both", "KL only")}}


class Bench:
    """A grid, a folder, and the commands that ran."""

    def __init__(self, folder, teacher, monkeypatch):
        self.grid = folder / "grid.yaml"
        self.output = folder / "experiment"
        self.teacher = teacher
        self.log = folder / "ran.log"
        self.monkeypatch = monkeypatch
        self.orders()
        self.write(GRID)

    def orders(self, **orders):
        self.monkeypatch.setenv("STAND_IN", json.dumps({"log": str(self.log), **orders}))

    def write(self, grid):
        self.grid.write_text(yaml.safe_dump(grid, sort_keys=False))

    def arguments(self, *more):
        return [
            str(self.grid), "--teacher", str(self.teacher), "--corpus", "toy",
            "--output", str(self.output), *more,
        ]  # fmt: skip

    def run(self, *more):
        experiment_of_stand_ins.main(self.arguments(*more))

    def start(self, name, *more):
        environment = {"STAND_IN": os.environ["STAND_IN"]}
        program = "experiment_of_stand_ins"
        return start(self.arguments(*more), self.output.parent / name, program, **environment)

    @property
    def ran(self):
        return self.log.read_text().splitlines()

    def ran_or_none(self):
        return self.ran if self.log.exists() else []

    @property
    def found(self):
        return json.loads((self.output / "experiment.json").read_text())

    def cell(self, name):
        return next(cell for cell in self.found["cells"] if cell["name"] == name)

    def wait_for(self, line):
        deadline = time.monotonic() + 60
        while not (self.log.exists() and line in self.ran):
            assert time.monotonic() < deadline, f"{line} did not come: {self.log.read_text()}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_folder):
    """A bench whose experiment has run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(schedule, "POLL_SECONDS", 0.02)
        bench = Bench(tmp_path_factory.mktemp("finished"), teacher_folder, monkeypatch)
        bench.run()
        yield bench


@pytest.fixture
def bench(tmp_path, teacher_folder, monkeypatch):
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.02)
    return Bench(tmp_path, teacher_folder, monkeypatch)


def test_each_stage_runs_once_and_none_again(finished, capsys):
    bench = finished
    first = Counter(bench.ran)
    assert set(first.values()) == {1}
    assert sum("comet.cache_teacher" in line for line in first) == 1
    for cell in ("both", "kl-only", "mlm", "tf-idf", "teacher"):
        assert first[f"comet.finetune {cell}/finetune"] == 1
        assert first[f"comet.evaluate {cell}/finetune"] == 1
    assert {cell["state"] for cell in bench.found["cells"]} == {"done"}
    bench.run()
    assert Counter(bench.ran) == first
    table = (bench.output / "table.md").read_text()
    assert table.split("\n\n", 1)[1].strip() in capsys.readouterr().out


def test_what_is_needed_comes_first(finished):
    order = {line: number for number, line in enumerate(finished.ran)}
    cache = next(number for line, number in order.items() if "cache" in line)
    assert cache < order["comet.distill both/distill"] < order["comet.finetune both/finetune"]
    assert order["comet.distill both/distill"] < order["comet.adapt mlm/probe"]
    assert order["comet.evaluate teacher/finetune"] < order["comet.evaluate both/finetune"]
    assert order["comet.evaluate tf-idf/finetune"] < order["comet.evaluate teacher/finetune"]


def test_the_twin_gets_the_time_of_student_and_teacher(finished):
    bench = finished
    # 100 steps of 100 tokens: 10 s at 1,000 tokens/s, and 10 s of the teacher; the twin takes 1/40 s a step
    budget = bench.cell("MLM")["budget"]
    assert budget["student_seconds"] == pytest.approx(10)
    assert budget["teacher_seconds"] == pytest.approx(10)
    assert budget["steps"] == pytest.approx(800, abs=1)
    assert budget["spent_seconds"] == pytest.approx(20, rel=0.01)
    recipe = yaml.safe_load((bench.output / "cells/mlm/mlm.yaml").read_text())
    assert recipe["optimisation"] == {"steps": budget["steps"], "warmup_steps": 80}
    assert recipe["model"] == {"model": str(bench.output / "cells/mlm/untrained")}
    assert "20.0 s that both took, 10.0 of them the teacher's" in (
        bench.output / "table.md"
    ).read_text().replace("\n", " ")


def test_a_twin_of_the_same_steps_needs_no_probe(bench):
    cells = {"both": {}, "MLM": {"model": "mlm", "budget": "steps", "mlm.corpus.max_length": 24}}
    bench.write({**GRID, "cells": cells})
    bench.run()
    assert not any("probe" in line for line in bench.ran)
    recipe = yaml.safe_load((bench.output / "cells/mlm/mlm.yaml").read_text())
    assert recipe["optimisation"] == {"steps": 100, "warmup_steps": 80}
    assert recipe["corpus"] == {"paths": ["toy"], "max_length": 24}


def test_the_twin_starts_from_the_weights_of_the_student(finished, tmp_path):
    import torch
    from transformers import AutoModelForMaskedLM

    from comet.initialise import main as initialise

    recipe = finished.output / "cells/both/distill.yaml"
    given = yaml.safe_load(recipe.read_text())
    given["teacher"] = {"model": str(finished.teacher)}
    given["corpus"] = {**given.get("corpus", {}), "paths": ["toy"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    initialise(["--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "student")])
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    twin = AutoModelForMaskedLM.from_pretrained(finished.output / "cells/mlm/untrained")
    assert twin.state_dict().keys() == student.state_dict().keys()
    for name, value in student.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_differences_to_the_first_cell(finished):
    bench = finished
    assert bench.cell("both")["difference"] is None
    found = bench.cell("MLM")["difference"]
    assert found["low"] < found["mean"] < found["high"] < 0
    same = bench.cell("KL only")["difference"]
    assert same["mean"] == same["low"] == same["high"] == 0
    row = next(
        line
        for line in (bench.output / "table.md").read_text().splitlines()
        if line.startswith("| MLM |")
    )
    assert f"{100 * found['mean']:+.2f} [" in row
    assert "98.0%" in row


def test_a_cell_that_fails_is_told_and_keeps_no_other_from_running(bench, capsys):
    bench.write(STUDENTS)
    bench.orders(fail=["comet.distill " + str(bench.output / "cells/kl-only")])
    with pytest.raises(SystemExit) as ended:
        bench.run()
    assert ended.value.code == 1
    states = {cell["name"]: cell["state"] for cell in bench.found["cells"]}
    assert states.pop("KL only") == "failed"
    assert set(states.values()) == {"done"}
    assert bench.cell("KL only")["why"] == "comet: error: it was to fail"
    assert "KL only: distill: failed: comet: error: it was to fail" in capsys.readouterr().out
    assert "- KL only: comet: error: it was to fail" in (bench.output / "table.md").read_text()
    before = len(bench.ran)
    bench.orders()
    bench.run()
    assert bench.ran[before:] == [
        "comet.distill resumed kl-only/distill",
        "comet.finetune kl-only/finetune",
        "comet.evaluate kl-only/finetune",
    ]
    assert bench.cell("KL only")["why"] is None


def test_a_stage_that_failed_by_a_clock_ahead_is_tried_again(bench):
    bench.write(STUDENTS)
    bench.orders(fail=["comet.distill " + str(bench.output / "cells/kl-only")])
    with pytest.raises(SystemExit):
        bench.run("--cells", "kl-only")
    file = bench.output / "cells/kl-only/distill.json"
    ahead = {"end": "2999-01-01T00:00:00+00:00", "ended": time.time() + 1e9}
    file.write_text(json.dumps({**json.loads(file.read_text()), **ahead}))
    bench.orders()
    bench.run("--cells", "kl-only")
    assert bench.ran.count("comet.distill resumed kl-only/distill") == 1
    assert json.loads(file.read_text())["attempts"] == 2


def test_an_attempt_nobody_saw_the_end_of_is_timed_by_one_clock(tmp_path):
    stage = Stage("cell", "distill", "comet.distill", tmp_path / "distill")
    record = {"state": "running", "seconds": 10.0, "start": "2999-01-01T00:00:00+00:00"}
    for ending, text, at in ((".json", json.dumps(record), 1000), (".log", "step 1", 1030)):
        stage.beside(ending).write_text(text)
        os.utime(stage.beside(ending), (at, at))
    assert record_end(stage, Lock.taken(stage), "killed")["seconds"] == 40.0


def test_a_teacher_that_fails_is_left_out_until_it_is_there(bench):
    bench.orders(fail=["comet.finetune " + str(bench.output / "cells/teacher")])
    with pytest.raises(SystemExit):
        bench.run("--cells", "both")
    assert "comet.evaluate both/finetune" in bench.ran
    assert not any("evaluate teacher" in line for line in bench.ran)
    assert bench.cell("both")["scores"]["retention"] is None
    bench.orders()
    before = len(bench.ran)
    bench.run("--cells", "both")
    assert bench.ran[before:] == [
        "comet.finetune resumed teacher/finetune",
        "comet.evaluate teacher/finetune",
        "comet.evaluate both/finetune",
    ]
    assert bench.cell("both")["scores"]["retention"] is not None


def test_a_failure_blocks_what_needs_it(bench):
    bench.write(STUDENTS)
    bench.orders(fail=["comet.cache_teacher"])
    with pytest.raises(SystemExit):
        bench.run()
    assert [line.split()[0] for line in bench.ran] == ["comet.cache_teacher"]
    assert {cell["state"] for cell in bench.found["cells"]} == {"open"}


def test_only_the_cells_asked_for_and_what_they_need(bench):
    bench.write(STUDENTS)
    bench.run("--cells", "kl-only")
    assert not any("both" in line for line in bench.ran)
    assert bench.cell("both")["state"] == "open"
    bench.run()
    assert bench.cell("both")["state"] == "done"
    assert set(Counter(bench.ran).values()) == {1}


def test_a_stage_that_was_begun_keeps_its_recipe(bench):
    bench.write(STUDENTS)
    bench.run("--cells", "kl-only")
    before = len(bench.ran)
    with pytest.raises(ValueError, match=r"begun with another recipe: optimisation\.steps is 100"):
        bench.run("--set", "distill.optimisation.steps=120")
    assert len(bench.ran) == before


def test_a_stage_that_never_came_to_train_takes_another_recipe(bench):
    bench.write(STUDENTS)
    bench.run("--cells", "kl-only")
    folder = bench.output / "cells/kl-only/distill"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".recipe.yaml.7.partial").touch()
    record = bench.output / "cells/kl-only/distill.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "failed"}))
    bench.run("--cells", "kl-only", "--set", "distill.optimisation.learning_rate=0.1")
    assert bench.ran.count("comet.distill kl-only/distill") == 2


def test_another_split_is_measured_without_training_again(bench):
    bench.write(STUDENTS)
    bench.run("--cells", "both")
    before = len(bench.ran)
    bench.run("--cells", "both", "--set", "evaluate.unseen=[pcm]")
    assert bench.ran[before:] == ["comet.evaluate both/finetune"]


def test_published_figures_stand_beside_test_alone(bench):
    bench.write({**STUDENTS, "published": "afrisenti"})
    bench.run("--cells", "both")
    assert bench.found["published"] is None
    assert "ublished" not in (bench.output / "table.md").read_text()
    bench.run("--cells", "both", "--set", "evaluate.split=test")
    assert bench.found["published"]["systems"]
    assert "Published, not measured here" in (bench.output / "table.md").read_text()


def test_what_ended_while_nobody_watched_is_done(bench):
    bench.write(STUDENTS)
    bench.run()
    record = bench.output / "cells/both/distill.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "running"}))
    before = len(bench.ran)
    bench.run()
    assert len(bench.ran) == before
    assert bench.cell("both")["stages"]["distill"]["state"] == "done"


@pytest.mark.parametrize("slow", ["kl-only/distill", "caches", "both/finetune"])
def test_killed_and_started_again_it_goes_on(bench, slow):
    bench.write(STUDENTS)
    bench.orders(slow=[slow], seconds=30)
    process = bench.start("killed")
    deadline = time.monotonic() + 60
    while not any(
        slow in line or (slow == "caches" and "cache" in line) for line in bench.ran_or_none()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    bench.orders()
    before = Counter(bench.ran)
    bench.run()
    after = Counter(bench.ran)
    after.subtract(before)
    assert {cell["state"] for cell in bench.found["cells"]} == {"done"}
    again = [line for line, count in after.items() if count > 0 and before[line]]
    assert all("cache" in line for line in again)  # its command goes on by itself
    if slow != "caches":
        assert sum("resumed" in line for line in after) == 1


def test_told_to_stop_it_lets_stages_save(bench, tmp_path):
    bench.write(STUDENTS)
    bench.orders(slow=["both/distill"], seconds=30)
    process = bench.start("stopped")
    bench.wait_for("comet.distill both/distill")
    time.sleep(0.2)
    process.terminate()
    process.join(20)
    assert process.exitcode == 143
    assert "the same command goes on" in (tmp_path / "stopped").read_text()
    assert bench.cell("both")["stages"]["distill"]["state"] == "stopped"
    bench.orders()
    bench.run()
    assert bench.ran.count("comet.distill resumed both/distill") == 1


def test_several_processes_share_the_work(bench, tmp_path):
    bench.write(STUDENTS)
    bench.orders(slow=["distill", "finetune"], seconds=0.3)
    processes = [bench.start(f"log-{number}") for number in range(2)]
    finish(processes, tmp_path / "log")
    assert set(Counter(bench.ran).values()) == {1}
    assert {cell["state"] for cell in bench.found["cells"]} == {"done"}
    for number in range(2):
        assert ": started" in (tmp_path / f"log-{number}").read_text()


def test_several_jobs_run_at_once(bench):
    bench.write(STUDENTS)
    seconds = 4
    bench.orders(slow=["kl-only/distill", "both/distill"], seconds=seconds)
    bench.run("--jobs", "3")
    stages = [bench.cell(name)["stages"]["distill"] for name in ("both", "KL only")]
    records = [
        json.loads((bench.output / "cells" / name / "distill.json").read_text())
        for name in ("both", "kl-only")
    ]
    assert all(stage["state"] == "done" for stage in stages)
    started = [datetime.fromisoformat(record["start"]).timestamp() for record in records]
    assert abs(started[0] - started[1]) < seconds, "one after the other"


def test_a_dry_run_prints_all_and_writes_nothing(bench, sentiment, capsys):
    bench.run("--dry-run", "--data", str(sentiment))
    said = capsys.readouterr().out
    assert not bench.output.exists()
    assert not bench.log.exists()
    for command in ("adapt", "distill", "cache_teacher", "finetune", "evaluate"):
        assert f"python -m comet.{command} " in said
    assert "one cache for both, KL only" in said
    assert "optimisation.steps follows from the time that both takes" in said
    assert "alpha: 1.0" in said


@pytest.mark.parametrize("content", ["[]", "7", '{"state": ', ""])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "distill.json").write_text(content)
    with pytest.raises(ValueError, match=r"distill\.json is damaged: remove it"):
        read_json(tmp_path / "distill.json")
    assert read_json(tmp_path / "absent.json") == {}


def test_the_time_of_a_run_is_that_of_its_whole_lines(tmp_path):
    lines = [
        {"step": 1, "tokens": 100, "tokens_per_second": 50},
        {"tokens": 5},
        [],
        {"step": 2, "tokens": 300, "tokens_per_second": 100},
    ]
    text = "\n".join([*map(json.dumps, lines), '{"step": 3, "tok'])
    (tmp_path / "metrics.jsonl").write_text(text)
    assert training_seconds(tmp_path / "metrics.jsonl") == 4


@pytest.mark.parametrize(
    ("given", "title", "said"),
    [
        (["--data", "nowhere"], "both: finetune", "task.data: nowhere does not exist"),
        (["--set", "finetune.task.languages=[hau, xho]"], "both: finetune", "for xho"),
        (["--set", "evaluate.unseen=[pcm]"], "both: finetune", "for pcm"),
        (["--set", "distill.corpus.languages=[xho]"], "cache", "languages: got xho"),
        (["--corpus", "nowhere"], "cache", "corpus: nowhere does not exist"),
        (["--set", "distill.corpus.max_length=80"], "both: distill", "corpus.max_length: got 80"),
        (["--set", "distill.student.initial=teacher", "--set", "distill.student.layers=9"], "both: distill", "got 9"),
        (["--teacher", "nobody/this"], "both: distill", "cannot load nobody/this"),
        (["--set", "finetune.model.max_length=80"], "teacher: finetune", "model.max_length: got 80"),
    ],
)  # fmt: skip
def test_a_dry_run_finds_what_would_fail(bench, sentiment, capsys, monkeypatch, given, title, said):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=re.escape(said)):
        bench.run("--dry-run", "--data", str(sentiment), *given)
    assert f"# would fail: {title}" in capsys.readouterr().out
    assert not bench.output.exists()
