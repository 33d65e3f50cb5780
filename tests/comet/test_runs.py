import contextlib
import json

import pytest

from comet.configuration import Given
from comet.recipe import CorpusRecipe, DistillRecipe, TeacherRecipe
from comet.runs import RunFolder, begun, read_record, resolve

RECIPE = DistillRecipe(TeacherRecipe(model="t"), corpus=CorpusRecipe(paths=["c"]))
CONTENT = {"teacher": {"model": "t"}, "corpus": {"paths": ["c"]}}


def folder_of(recipe=None, resume=False, content=CONTENT):
    return resolve(DistillRecipe, Given(content, recipe, resume), "comet.distill")[0]


def test_a_run_without_a_folder_gets_the_first_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        folder = folder_of("quickstart")
        names.append(str(folder))
        with RunFolder(folder, RECIPE, resume=False).recorded():
            pass
    assert names == ["runs/quickstart", "runs/quickstart-2", "runs/quickstart-3"]
    assert str(folder_of("my/own.yaml")) == "runs/own"
    assert str(folder_of()) == "runs/distill"


def test_resuming_without_a_folder_means_the_last_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with RunFolder(folder_of(), RECIPE, resume=False).recorded():
            pass
    assert str(folder_of(resume=True)) == "runs/distill-2"


def test_a_failure_is_recorded_with_its_reason(tmp_path):
    run = RunFolder(tmp_path / "run", RECIPE, resume=False)
    with pytest.raises(ValueError, match="no bread"), run.recorded():
        raise ValueError("no bread")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["state"], record["why"]) == ("failed", "no bread")


def test_the_record_keeps_every_segment_of_a_run(tmp_path, monkeypatch):
    def run(outcome, resume=True, **facts):
        with (
            contextlib.suppress(ValueError),
            RunFolder(tmp_path / "run", RECIPE, resume=resume).recorded(**facts),
        ):
            if outcome:
                raise outcome
        return json.loads((tmp_path / "run" / "run.json").read_text())

    first = run(ValueError("no bread"), resume=False, corpus="a")
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    found = run(None, corpus="a")
    assert (found["state"], found["start"], found["corpus"]) == ("done", first["start"], "a")
    assert "why" not in found
    one, other = found["segments"]
    assert one == first["segments"][0]
    assert (one["state"], one["why"], one["end"]) == ("failed", "no bread", first["end"])
    assert (other["state"], other["end"]) == ("done", found["end"])
    assert one["versions"] == other["versions"] == found["versions"]
    assert found["hardware"]["threads"] == other["hardware"]["threads"] == 64
    assert one["hardware"]["threads"] != 64


def test_a_segment_that_was_killed_and_a_record_of_before_are_kept(tmp_path):
    before = {"state": "running", "start": "2026-01-01T00:00:00+00:00", "versions": {"torch": "1"}}
    found = begun({**before, "corpus": "a"}, {"versions": {"torch": "2"}})
    assert found["segments"][0] == {**before, "state": "killed"}
    assert found["versions"] == found["segments"][1]["versions"] == {"torch": "2"}
    assert found["start"] == before["start"]
    new = begun({}, {})
    assert new["segments"] == [{"state": "running", "start": new["start"]}]
    assert len(begun({**before, "segments": [before, before]}, {})["segments"]) == 3


def test_metrics_of_steps_to_be_done_again_are_dropped(tmp_path):
    run = RunFolder(tmp_path, RECIPE, resume=False)
    for step in (2, 4, 6):
        run.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run.log({"step": 6}, "evaluation.jsonl")
    run.forget_lines_after(4, 4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert (tmp_path / "evaluation.jsonl").read_text() == ""


def test_lines_that_are_whole_but_name_no_step_are_dropped_too(tmp_path):
    lines = ['{"loss": 1}', "[]", "7", '{"step": "x"}', "\x00\x00", '{"step": 2}', '{"st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    RunFolder(tmp_path, RECIPE, resume=True).forget_lines_after(4, 4)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2}\n'


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"state": ', "\x00", '"done"'])
def test_a_run_whose_record_is_damaged_is_resumed(tmp_path, content):
    with RunFolder(tmp_path, RECIPE, resume=False).recorded():
        pass
    (tmp_path / "run.json").write_text(content)
    assert read_record(tmp_path) == {}
    with pytest.raises(ValueError, match="holds another run; add --resume to go on with it"):
        RunFolder(tmp_path, RECIPE, resume=False)
    with RunFolder(tmp_path, RECIPE, resume=True).recorded():
        pass
    assert read_record(tmp_path)["state"] == "done"


def test_a_folder_where_a_run_was_killed_before_its_first_file_is_begun_again(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".recipe.yaml.123.partial").write_text("teach")
    content = {**CONTENT, "run": {"output": str(folder)}}
    with pytest.raises(ValueError, match=r"holds no run yet, .*; start it again without --resume"):
        folder_of(resume=True, content=content)
    with RunFolder(folder_of(content=content), RECIPE, resume=False).recorded():
        pass
    assert read_record(folder)["state"] == "done"
    assert not list(folder.glob(".*.partial"))


def test_what_another_process_wrote_since_this_one_looked_is_not_written_over(tmp_path):
    late = RunFolder(tmp_path / "run", RECIPE, resume=False)
    with RunFolder(tmp_path / "run", RECIPE, resume=False).recorded(who="first"):
        pass
    with pytest.raises(ValueError, match="holds another run"), late.recorded():
        pass
    assert read_record(tmp_path / "run")["who"] == "first"


def test_a_number_that_json_does_not_know_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(tmp_path, RECIPE, resume=False).log({"loss": float("nan")})
