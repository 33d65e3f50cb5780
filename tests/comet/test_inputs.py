"""What a run reads is named by content, and compared when it is resumed."""

import json
import os
import shutil

import pytest
from tiny import TINY_RUN

from comet import pretrained
from comet.corpus import lines, open_corpus
from comet.distill import main
from comet.durable import sampled_checksum
from comet.inputs import Input, changed_inputs, model_inputs, saved_inputs
from comet.recipe import CorpusRecipe, DistillRecipe, TeacherRecipe
from comet.runs import RunFolder

RECIPE = DistillRecipe(TeacherRecipe(model="t"), corpus=CorpusRecipe(paths=["c"]))


def edited(file, before, after):
    """Change a file in place, as an editor does that keeps its size."""
    content = file.read_bytes()
    assert content.count(before)
    assert len(before) == len(after)
    file.write_bytes(content.replace(before, after, 1))


def test_a_small_file_is_hashed_whole_and_a_large_one_by_size_and_blocks(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"x" * (3 << 20))
    whole, large = sampled_checksum(file, 3 << 20), sampled_checksum(file, 1 << 20)
    assert (whole[1], large[1]) == (True, False)

    def changed(place):
        content = bytearray(b"x" * (3 << 20))
        content[place] = ord("y")
        file.write_bytes(content)
        return (
            sampled_checksum(file, 3 << 20)[0] != whole[0],
            sampled_checksum(file, 1 << 20)[0] != large[0],
        )

    assert changed(0) == changed(-1) == changed(3 * ((3 << 20) - (1 << 17)) // 7) == (True, True)
    assert changed(200_000) == (True, False)  # between two blocks
    file.write_bytes(b"x" * (3 << 20) + b"x")
    assert sampled_checksum(file, 1 << 20)[0] != large[0]


def test_of_a_model_weights_configuration_and_tokenizer_are_told_apart(teacher_folder, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher_folder, folder)
    before = model_inputs("teacher", str(teacher_folder))
    assert changed_inputs(before, model_inputs("teacher", str(folder))) == []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "99"}))
    assert changed_inputs(before, model_inputs("teacher", str(folder))) == []
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert changed_inputs(before, model_inputs("teacher", str(folder))) == ["teacher configuration"]
    edited(folder / "tokenizer.json", b'"Metaspace"', b'"Metaspeak"')
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    found = changed_inputs(before, model_inputs("teacher", str(folder)))
    assert found == ["teacher weights", "teacher configuration", "teacher tokenizer"]


def test_a_model_of_the_hub_is_fetched_whole_and_named_by_its_commit(
    teacher_folder, tmp_path, monkeypatch
):
    snapshot = tmp_path / "snapshots" / "0123abc"

    def fetch(name, *, revision, allow_patterns, **_):
        assert (name, revision) == ("owner/teacher", "main")
        if "*.safetensors" in allow_patterns:
            shutil.copytree(teacher_folder, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(pretrained, "snapshot_download", fetch)
    found = model_inputs("teacher", "owner/teacher", "main")
    assert {one.source for one in found.values()} == {"owner/teacher@0123abc"}
    assert changed_inputs(found, model_inputs("teacher", str(teacher_folder))) == []


def test_what_another_version_named_is_left_out():
    assert saved_inputs(None) == saved_inputs([]) == {}
    named = {"text": {"source": "a", "fingerprint": "b", "times": ""}, "other": {"source": "c"}}
    assert saved_inputs(named) == {"text": Input("a", "b")}


def test_a_run_folder_keeps_what_was_read_and_refuses_the_rest(tmp_path):
    def run(resume, *several):
        folder = RunFolder(tmp_path / "run", RECIPE, resume=resume)
        folder.reads(several[0])
        with folder.recorded():
            for more in several[1:]:
                folder.reads(more)
            raise KeyboardInterrupt

    text, teacher = {"text": Input("t", "1")}, {"teacher": Input("m", "2")}
    with pytest.raises(KeyboardInterrupt):
        run(False, text, teacher)
    with pytest.raises(KeyboardInterrupt):
        run(True, text)  # which is stopped before it comes to the teacher
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["inputs"]["teacher"] == {"source": "m", "fingerprint": "2", "times": ""}
    with pytest.raises(
        ValueError, match=r"--resume: teacher \(elsewhere, before m\): not what the"
    ):
        run(True, text, {"teacher": Input("elsewhere", "3")})
    with pytest.raises(ValueError, match=r"--resume: text \(t\): not what the run in"):
        run(True, {"text": Input("t", "4")})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inputs"] == record["inputs"]


@pytest.fixture(scope="module")
def stopped(teacher_folder, corpus_folder, tmp_path_factory):
    """A run over streamed text that was stopped, with its own text and teacher."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(teacher_folder, folder / "teacher")
    shutil.copytree(corpus_folder, folder / "text")
    main([
        "--teacher", str(folder / "teacher"), "--corpus", str(folder / "text"), *TINY_RUN,
        "--steps", "2", "--corpus.in_memory", "0", "--output", str(folder / "run"),
    ])  # fmt: skip
    record = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps({**record, "state": "failed"}))
    return folder


@pytest.mark.parametrize("known_from", ["run.json", "checkpoint"])
@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("text/hau/text.txt", (b"a", b"e"), r"text \(.*text\)"),
        ("teacher/model.safetensors", (b"\0\0", b"\0\1"), r"teacher weights \(.*teacher\)"),
        ("teacher/config.json", (b"1e-12", b"1e-03"), r"teacher configuration \(.*teacher\)"),
    ],
)
def test_resuming_with_another_input_is_refused_by_its_name(
    stopped, tmp_path, file, change, said, known_from
):
    run = tmp_path / "run"
    shutil.copytree(stopped / "run", run)
    if known_from == "checkpoint":
        (run / "run.json").unlink()
    before = (stopped / file).read_bytes()
    times = (stopped / file).stat()
    at = before.rindex(change[0])
    (stopped / file).write_bytes(before[:at] + change[1] + before[at + len(change[0]) :])
    os.utime(stopped / file, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        with pytest.raises(
            ValueError, match=f"--resume: {said}: not what the run in .* read before"
        ):
            main(["--resume", "--output", str(run)])
    finally:
        (stopped / file).write_bytes(before)


def test_a_copy_of_all_resumes(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped / "run", run)
    os.utime(stopped / "text/hau/text.txt")
    main(["--resume", "--output", str(run)])
    assert json.loads((run / "run.json").read_text())["state"] == "done"


def test_a_checkpoint_of_before_resumes_with_a_line(stopped, tmp_path, capsys):
    """Format 1 named no inputs, and of streamed text the names and sizes of the files alone."""
    run = tmp_path / "run"
    shutil.copytree(stopped / "run", run)
    (run / "run.json").write_text('{"state": "failed"}')
    checkpoint = run / "checkpoints" / "step-2"
    state = json.loads((checkpoint / "state.json").read_text())
    for later in ("inputs", "environment", "skipped"):
        del state[later]
    corpus = open_corpus(
        [str(stopped / "text")], temperature=1.0, seed=0, held_out_per_language=8, in_memory=0
    )
    assert corpus.is_of(corpus._earlier)
    assert corpus._earlier != corpus.fingerprint()
    state["batches"]["streams"]["0"]["text"]["corpus"] = corpus._earlier
    (checkpoint / "state.json").write_text(json.dumps(state))
    sums = {
        name: sampled_checksum(checkpoint / name, 1 << 30)[0]
        for name in ("tensors.safetensors", "state.json")
    }
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    main(["--resume", "--output", str(run)])
    said = capsys.readouterr().out
    assert said.count("did not note what a run reads") == 1
    assert json.loads((run / "run.json").read_text())["state"] == "done"


def test_other_times_of_files_that_were_sampled_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lines, "HASHED", 1 << 16)
    file = tmp_path / "hau" / "text.txt"
    file.parent.mkdir()
    file.write_text("\n".join(f"kalma {number} da kalma" for number in range(40_000)))

    def read():
        corpus = open_corpus(
            [str(tmp_path)], temperature=1.0, seed=0, held_out_per_language=8, in_memory=0
        )
        return {"text": Input("here", corpus.fingerprint(), corpus.times())}

    before = read()
    assert before["text"].times
    run = RunFolder(tmp_path / "run", RECIPE, resume=False)
    run.reads(before)
    run.require_same_inputs(run.inputs_as_json)
    assert capsys.readouterr().out == ""
    os.utime(file, (1, 1))
    later = RunFolder(tmp_path / "later", RECIPE, resume=False)
    later.reads(read())
    later.require_same_inputs(run.inputs_as_json)
    assert "warning: text: large files have other times" in capsys.readouterr().out
