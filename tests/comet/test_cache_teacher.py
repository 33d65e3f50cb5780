"""The command, and whole tiny runs from what it makes."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import TINY_RUN, TINY_STUDENT
from transformers import AutoModelForMaskedLM

import comet_kernels
from comet import cache_files, distill, frozen, sources
from comet.cache_teacher import main
from comet.configuration import build, parse_command
from comet.durable import locked, unsealed
from comet.recipe import DistillRecipe
from comet.students import load_masked_lm
from comet.tap import TappedEncoder
from comet.teacher_cache import complete, open_cache
from comet.teachers import OnlineTeacher

BATCHES, STEPS = 4, 8


@pytest.fixture(scope="module")
def arguments(teacher_folder, corpus_folder):
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    return [*given, "--fused", "--steps", str(STEPS), "--student.dropout", "0.0"]


def made(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    main([*arguments, "--batches", str(BATCHES), "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def hidden(tmp_path_factory, arguments):
    return made(tmp_path_factory, arguments)


@pytest.fixture(scope="module")
def every_logit(tmp_path_factory, arguments):
    """So many largest logits that none is left over."""
    return made(tmp_path_factory, [*arguments, "--keep", "logits", "--top-k", "300"])


def run(arguments, folder):
    """Metrics of a run by step, and its agreement."""
    given = parse_command(
        DistillRecipe,
        arguments,
        program="test",
        description="",
        shortcuts=distill.SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    recipe = build(DistillRecipe, complete(given.content))
    distill.distill(recipe, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = {line["step"]: line for line in map(json.loads, lines)}
    return metrics, json.loads((folder / "agreement.json").read_text())


def assert_same_losses(cached, online, steps, tolerance=1e-3):
    for step in steps:
        for name in ("loss", "kd", "attention"):
            assert cached[step][name] == pytest.approx(online[step][name], rel=tolerance), (
                step,
                name,
            )


@pytest.fixture(scope="module")
def online(tmp_path_factory, arguments):
    return run(arguments, tmp_path_factory.mktemp("runs") / "online")


@pytest.mark.parametrize("keep", ["hidden", "every_logit"])
def test_the_first_round_has_the_losses_of_the_online_run(
    keep, request, arguments, online, tmp_path
):
    cache = request.getfixturevalue(keep)
    cached, agreement = run([*arguments, "--teacher-cache", str(cache)], tmp_path / "run")
    assert_same_losses(cached, online[0], [2, 4])
    assert cached[4]["tokens"] == online[0][4]["tokens"]
    before, expected = agreement["before"]["all"], online[1]["before"]["all"]
    for name, value in expected.items():
        assert before[name] == pytest.approx(value, rel=1e-3), name


def test_rounds_have_the_losses_of_a_teacher_that_reads_the_same_batches(
    hidden, arguments, teacher_folder, tmp_path, monkeypatch
):
    given = [*arguments, "--teacher-cache", str(hidden)]
    cached, _ = run(given, tmp_path / "cached")
    cached_sources = sources.cached_sources

    def with_a_teacher(*some):
        encoder = TappedEncoder(load_masked_lm(str(teacher_folder)))
        return replace(cached_sources(*some), teacher=OnlineTeacher(encoder, comet_kernels))

    monkeypatch.setattr(distill, "cached_sources", with_a_teacher)
    reading, _ = run(given, tmp_path / "reading")
    assert_same_losses(cached, reading, [2, 4, 6, 8])


def test_a_run_from_the_cache_alone(hidden, arguments, tmp_path, capsys):
    """Neither teacher nor text is named, and both may be gone."""
    given = [
        *TINY_STUDENT,
        "--teacher-cache",
        str(hidden),
        "--steps",
        "6",
        "--objective.alpha",
        "0.8",
    ]
    run([*given, "--optimisation.warmup_steps", "1"], tmp_path / "run")
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "student")
    assert student.config.num_hidden_layers == 2
    assert f"cache    {hidden}: hidden states of" in capsys.readouterr().out


def test_what_is_reported(hidden, arguments, capsys):
    """Of a cache that is there, nothing is done again."""
    before = {path: path.stat().st_mtime_ns for path in hidden.rglob("*")}
    main([*arguments, "--batches", str(BATCHES), "--output", str(hidden)])
    said = capsys.readouterr().out
    assert "bytes a token" in said
    assert "speed-up" in said
    assert {path: path.stat().st_mtime_ns for path in hidden.rglob("*")} == before


def files_of(folder):
    """All but how long it took."""
    found = {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    index = unsealed(json.loads(found.pop(Path("index.json"))))
    assert index.pop("seconds") > 0
    return found, index


def test_a_cache_that_was_killed_goes_on(arguments, tmp_path):
    """Killed while it writes its many files; the result is that of a command never killed."""
    lines = "import sys; from comet import cache_writer as w; w.SHARD_BYTES = 1"
    program = f"{lines}; from comet.cache_teacher import main; main(sys.argv[1:])"
    command = [*arguments, "--batches", "60"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    started = [sys.executable, "-c", program, *command, "--output", str(killed)]
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (killed / "steps-00003.safetensors").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = json.loads((killed / "index.json").read_text())
    assert not there["complete"]
    assert 3 <= len(there["shards"]) < 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comet.cache_writer.SHARD_BYTES", 1)
        main([*command, "--output", str(whole)])
        main([*command, "--output", str(killed)])
    assert files_of(killed) == files_of(whole)


def test_a_full_disk_ends_in_one_line_and_the_command_goes_on(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("comet.cache_writer.SHARD_BYTES", 1)
    save_file, calls = cache_files.save_file, 0

    def full(tensors, path):
        nonlocal calls
        calls += 1
        if calls == 4:
            path.write_bytes(b"half a fi")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr(cache_files, "save_file", full)
    command = [*arguments, "--batches", str(BATCHES), "--output", str(tmp_path / "cache")]
    said = r"cannot write .*No space left on device.*; 2 of 4 steps are there: make room"
    with pytest.raises(OSError, match=said):
        main(command)
    assert not list((tmp_path / "cache").glob(".*.partial"))
    with pytest.raises(ValueError, match="holds 2 of 4 steps"):
        read(tmp_path / "cache", arguments)
    main(command)
    assert read(tmp_path / "cache", arguments).steps == BATCHES


def read(folder, arguments):
    given = parse_command(
        DistillRecipe,
        [*arguments, "--teacher-cache", str(folder)],
        program="test",
        description="",
        shortcuts=distill.SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    return open_cache(str(folder), build(DistillRecipe, given.content))


def test_a_cache_begun_from_another_teacher_or_text_is_not_continued(
    arguments, hidden, tmp_path, teacher_folder, corpus_folder, capsys
):
    shutil.copytree(hidden, tmp_path / "cache")
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    shutil.copytree(corpus_folder, tmp_path / "text")
    index = json.loads((hidden / "index.json").read_text())
    given = [
        "--teacher", str(tmp_path / "teacher"), "--corpus", str(tmp_path / "text"), *arguments[4:],
        "--batches", str(BATCHES), "--output", str(tmp_path / "cache"),
    ]  # fmt: skip
    capsys.readouterr()
    main(given)  # the same, elsewhere
    assert f"has its {BATCHES} steps; the teacher reads nothing" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"steps is 4 there, 5 here \(a cache is not extended"):
        main([*given, "--batches", str(BATCHES + 1)])
    for name, file, before, after in (
        ("configuration", "teacher/config.json", b"1e-12", b"1e-03"),
        ("corpus", "text/hau/text.txt", b"a", b"e"),
    ):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content.replace(before, after, 1))
        with pytest.raises(
            ValueError, match=f"holds another cache: it was made from another {name}"
        ):
            main(given)
        (tmp_path / file).write_bytes(content)
    # as an earlier version wrote it
    del index["made_from"]["configuration"], index["sha256"], index["teacher_files"]
    (tmp_path / "cache/index.json").write_text(json.dumps({**index, "format": 1}))
    main(given)


def test_a_folder_with_something_else_is_left_alone(hidden, arguments, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        main([*arguments, "--output", str(tmp_path)])
    said = "holds another cache: corpus.max_length is 24 there, 16 here"
    with pytest.raises(ValueError, match=said):
        main([*arguments, "--corpus.max_length", "16", "--batches", "4", "--output", str(hidden)])
    with pytest.raises(ValueError, match="holds another cache: steps is 4 there, 8 here"):
        main([*arguments, "--output", str(hidden)])


def test_a_teacher_whose_weights_are_no_numbers_is_refused_before_anything_is_written(
    arguments, teacher_folder, tmp_path
):
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher/model.safetensors")
    weights["lm_head.bias"][7] = -math.inf
    save_file(weights, tmp_path / "teacher/model.safetensors", metadata={"format": "pt"})
    given = [*arguments, "--teacher", str(tmp_path / "teacher"), "--batches", "1"]
    with pytest.raises(ValueError, match=r"--teacher: .* of lm_head\.bias are not finite"):
        main([*given, "--output", str(tmp_path / "cache")])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("part", ["hidden", "attention_map"])
@pytest.mark.parametrize("keep", ["hidden", "logits"])
def test_outputs_that_are_no_numbers_are_not_stored(arguments, tmp_path, monkeypatch, part, keep):
    read = OnlineTeacher.read

    def overflowing(self, batch):
        said = read(self, batch)
        getattr(said, part).view(-1)[0] = math.nan
        return said

    monkeypatch.setattr(OnlineTeacher, "read", overflowing)
    given = [*arguments, "--batches", "1", "--keep", keep, "--output", str(tmp_path / "cache")]
    with pytest.raises(ValueError, match=r"--teacher: its outputs are not all finite"):
        main(given)
    assert not list((tmp_path / "cache").glob("steps-*"))


def test_a_cache_of_logits_has_one_temperature(every_logit, arguments):
    assert read(every_logit, arguments).steps == BATCHES
    with pytest.raises(ValueError, match=r"objective.temperature is 2.0 there, 3.0 here"):
        read(every_logit, [*arguments, "--objective.temperature", "3"])


@pytest.mark.parametrize("instructions", [True, False])
def test_precision_of_the_teacher_follows_the_recipe(
    arguments, hidden, tmp_path, monkeypatch, instructions
):
    monkeypatch.setattr(frozen, "cpu_multiplies_bfloat16", lambda: instructions)
    folder = tmp_path / "half"
    half = [*arguments, "--optimisation.precision", "bfloat16"]
    main([*half, "--batches", str(BATCHES), "--output", str(folder)])
    ours, theirs = (
        read(one, arguments).step(0)[0].teacher.hidden.float() for one in (folder, hidden)
    )
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    assert 1e-3 < difference < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resume"], "--resume: not needed"),
        (["--top-k", "0"], "--top-k: got 0, expected 1 or more"),
        (["--batches", "-1"], "--batches: got -1, expected 1 or more"),
        (["--keep", "logits", "--top-k", "301"], "--top-k: got 301, but .* 300 entries"),
        (["--teacher-cache", "x"], "--teacher-cache: a cache is made from a teacher"),
        (["--keep", "everything"], "--keep: got 'everything', expected one of hidden, logits"),
        (["--objective.attention_loss", "relation"], "attention_loss: got relation"),
        (
            [
                *["--keep", "logits", "--objective.temperature_mode", "adaptive"],
                *["--objective.temperature_end", "4"],
            ],
            "temperature_mode: got adaptive with --keep logits",
        ),
    ],
)
def test_what_a_cache_cannot_hold_is_refused(arguments, tmp_path, options, said):
    given = arguments[:4] if "relation" in options else arguments
    with pytest.raises(ValueError, match=said):
        main([*given, *options, "--output", str(tmp_path / "cache")])
    assert not (tmp_path / "cache").exists()


def test_the_teacher_need_not_be_there_any_more(arguments, tmp_path, hidden):
    copy = tmp_path / "copy"
    shutil.copytree(hidden, copy)
    gone = [*arguments, "--teacher", str(tmp_path / "nowhere")]
    with pytest.raises(ValueError, match=r"not on this machine.*leave out --teacher"):
        read(copy, gone)


def test_two_never_make_one_cache(arguments, tmp_path):
    folder = tmp_path / "cache"
    said = r"--output: another process is making the cache in .*cache"
    with locked(folder / ".lock"), pytest.raises(ValueError, match=said):
        main([*arguments, "--batches", "2", "--output", str(folder)])
    main([*arguments, "--batches", "2", "--output", str(folder)])
    assert read(folder, arguments).steps == 2
