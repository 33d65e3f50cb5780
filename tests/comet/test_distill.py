import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_RUN, TINY_STUDENT, tiny_model
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from comet import distill as distill_module
from comet import frozen
from comet.distill import main
from comet.objective import Distiller
from comet.sources import mixture
from comet_kernels.ops.softened_kl import linear_pieces


@pytest.fixture
def command(teacher_folder, corpus_folder):
    return ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(metrics):
    return [
        {k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_memory")}
        for line in metrics
    ]


@pytest.fixture(scope="module")
def finished(teacher_folder, corpus_folder, tmp_path_factory):
    """A run of seven steps, fused."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    main(
        [
            "--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN,
            "--fused", "--steps", "7", "--output", str(folder),
        ]
    )  # fmt: skip
    return folder


def test_the_run_folder_holds_what_is_promised(finished):
    record = json.loads((finished / "run.json").read_text())
    assert record["state"] == "done"
    assert {"versions", "commit", "hardware", "start", "end", "corpus"} <= record.keys()
    metrics = metrics_of(finished)
    assert [line["step"] for line in metrics] == [2, 4, 6, 7]
    assert list(metrics[0]) == [
        "step", "tokens", "loss", "kd", "attention", "grad_norm", "kd/hau", "kd/swa", "lr",
        "tokens_per_second", "peak_memory",
    ]  # fmt: skip
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step-6", "step-7"}
    agreement = json.loads((finished / "agreement.json").read_text())
    assert agreement["after"].keys() == {"hau", "swa", "all"}
    assert agreement["after"]["all"]["kl"] < agreement["before"]["all"]["kl"]


def test_the_student_loads_as_a_transformers_model(finished, teacher_folder):
    student = AutoModelForMaskedLM.from_pretrained(finished / "student")
    assert student.config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(finished / "student")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(teacher_folder).get_vocab()
    encoded = tokenizer(["Malami ya koya wa dalibai."], return_tensors="pt")
    assert student(**encoded).logits.shape[-1] == len(tokenizer)
    assert AutoModel.from_pretrained(finished / "student") is not None
    saved = load_file(finished / "student" / "model.safetensors")
    assert not any("projection" in name or name.startswith("teacher") for name in saved)
    assert "comet" not in (finished / "student" / "config.json").read_text()


def test_running_the_written_recipe_again_repeats_the_run(finished, tmp_path):
    again = tmp_path / "again"
    main(["--recipe", str(finished / "recipe.yaml"), "--output", str(again)])
    assert timeless(metrics_of(again)) == timeless(metrics_of(finished))
    name = "student/model.safetensors"
    assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_an_interrupted_run_resumes_to_the_same_student(finished, tmp_path, monkeypatch, command):
    stopped = tmp_path / "stopped"
    calls = 0
    forward = Distiller.forward

    def interrupted(self, *given):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return forward(self, *given)

    monkeypatch.setattr(Distiller, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "--fused", "--steps", "7", "--output", str(stopped)])
    monkeypatch.undo()
    assert json.loads((stopped / "run.json").read_text())["state"] == "failed"
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "half a li')
    main(["--resume", "--output", str(stopped)])
    assert json.loads((stopped / "run.json").read_text())["state"] == "done"
    assert timeless(metrics_of(stopped))[-1] == timeless(metrics_of(finished))[-1]
    name = "student/model.safetensors"
    assert (stopped / name).read_bytes() == (finished / name).read_bytes()


def test_unfused_gives_the_same_losses(finished, tmp_path, command):
    plain = tmp_path / "plain"
    main([*command, "--steps", "7", "--output", str(plain)])
    for fused_line, line in zip(metrics_of(finished), metrics_of(plain), strict=True):
        assert line["loss"] == pytest.approx(fused_line["loss"], rel=1e-4)


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_trains_with_and_without_instructions_for_it(
    tmp_path, command, monkeypatch, instructions
):
    for module in (frozen, linear_pieces):
        monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: instructions)
    options = ["--optimisation.precision", "bfloat16", "--fused", "--steps", "4"]
    trains(tmp_path / "run", command, options)


def test_masked_tokens_alone_train(tmp_path, command):
    trains(
        tmp_path / "run", command, ["--objective.kd_tokens", "masked", "--fused", "--steps", "4"]
    )


def trains(folder, command, options):
    main([*command, *options, "--output", str(folder)])
    student = AutoModelForMaskedLM.from_pretrained(folder / "student")
    assert all(value.isfinite().all() for value in student.parameters())
    assert student.dtype == torch.float32


def test_what_saves_memory_or_time_changes_no_loss(finished, tmp_path, command):
    folder = tmp_path / "run"
    saving = ["--optimisation.gradient_checkpointing", "--corpus.workers", "1"]
    main([*command, *saving, "--fused", "--steps", "7", "--output", str(folder)])
    for line, other in zip(metrics_of(folder), metrics_of(finished), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(finished, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "recipe.yaml", run)
    (run / "metrics.jsonl").write_text('{"step": 2}\n')
    main(["--resume", "--output", str(run)])
    assert timeless(metrics_of(run)) == timeless(metrics_of(finished))


def test_a_damaged_checkpoint_is_passed_over_on_request(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "run.json").unlink()
    tensors = run / "checkpoints" / "step-7" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"step-7 is damaged; .* --resume-from 6"):
        main(["--resume", "--output", str(run)])
    main(["--resume-from", "6", "--output", str(run)])
    assert timeless(metrics_of(run)) == timeless(metrics_of(finished))
    name = "student/model.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_a_folder_that_cannot_be_written_is_said(command):
    with pytest.raises(OSError, match=r"cannot write /proc/nowhere.*make room or the folder"):
        main([*command, "--steps", "2", "--output", "/proc/nowhere"])


def test_a_student_can_be_given(finished, tmp_path, command):
    folder = tmp_path / "run"
    given = [*command[:4], *TINY_RUN[len(TINY_STUDENT) :], "--student", str(finished / "student")]
    main([*given, "--steps", "2", "--output", str(folder)])
    first = json.loads((folder / "agreement.json").read_text())["before"]["all"]["kl"]
    last = json.loads((finished / "agreement.json").read_text())["after"]["all"]["kl"]
    assert first == pytest.approx(last, rel=1e-4)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_output_folder_with_another_run_is_left_alone(finished, command):
    before = snapshot(finished)
    with pytest.raises(ValueError, match="holds another run"):
        main([*command, "--output", str(finished)])
    assert snapshot(finished) == before


def test_a_finished_run_is_said_to_be_done_and_how_to_extend_it(finished, capsys):
    before = snapshot(finished)
    main(["--resume", "--output", str(finished)])
    said = capsys.readouterr().out
    assert (
        f"has done its 7 steps; for more, python -m comet.distill --resume --output {finished}"
        in said
    )
    assert "--steps 14" in said
    with pytest.raises(
        ValueError, match=r"optimisation\.steps: got 5, but the run in .* has done 7"
    ):
        main(["--resume", "--output", str(finished), "--steps", "5"])
    assert snapshot(finished) == before


@pytest.mark.parametrize("ended", [True, False])
def test_more_steps_extend_a_run_by_the_schedule_of_the_longer_one(
    finished, tmp_path, capsys, ended
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    if not ended:
        (run / "run.json").unlink()
        shutil.rmtree(run / "checkpoints" / "step-7")
    main(["--resume", "--output", str(run), "--steps", "11"])
    step = 7 if ended else 6
    said = capsys.readouterr().out
    # warm-up is 1 step: the factor was (7 − n) / 6 and is (11 − n) / 10
    assert f"steps    11 instead of 7: from step {step} on" in said
    rates = f"{5e-4 * (11 - step) / 10:.3g} instead of {5e-4 * (7 - step) / 6:.3g}"
    assert f"(learning rate {rates})" in said
    metrics = metrics_of(run)
    assert [line["step"] for line in metrics] == [2, 4, 6, *([7] if ended else []), 8, 10, 11]
    assert metrics[-1]["lr"] == pytest.approx(5e-4 / 10)
    evaluated = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated] == [0, *([7] if ended else []), 11]
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["length"]) == ("done", {"steps": 11})
    assert (run / "recipe.yaml").read_text().count("steps: 11") == 1
    before = snapshot(run)
    main(["--resume", "--output", str(run)])
    assert snapshot(run) == before


def test_an_extension_that_was_killed_before_it_trained_is_resumed(finished, tmp_path):
    """The longer recipe stands, while run.json is still that of the finished run."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("\n  steps: 7\n", "\n  steps: 9\n"))
    main(["--resume", "--output", str(run)])
    assert metrics_of(run)[-1]["step"] == 9


def test_fewer_steps_end_a_run_sooner_but_not_before_what_is_done(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-7")
    with pytest.raises(
        ValueError, match="is to have 5 steps, but its checkpoint has done 6; give as"
    ):
        main(["--resume", "--output", str(run), "--steps", "5"])
    main(["--resume", "--output", str(run), "--steps", "6"])
    assert metrics_of(run)[-1]["step"] == 6
    assert json.loads((run / "run.json").read_text())["length"] == {"steps": 6}


def test_an_output_folder_with_other_files_is_left_alone(tmp_path, command):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        main([*command, "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_another_recipe_is_refused(finished, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(finished, stopped)
    record = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**record, "state": "failed"}))
    with pytest.raises(ValueError, match=r"objective.alpha is 0.5 there, 0.9 here"):
        main(["--resume", "--output", str(stopped), "--objective.alpha", "0.9"])


def test_resuming_where_nothing_is_is_refused(tmp_path, command):
    with pytest.raises(ValueError, match="holds no run"):
        main([*command, "--resume", "--output", str(tmp_path / "nowhere")])


def test_losses_that_are_no_number_stop_the_run_with_the_batch_and_the_checkpoints_kept(
    tmp_path, monkeypatch, command
):
    forward, calls = Distiller.forward, 0

    def spoilt(self, *given):
        nonlocal calls
        calls += 1
        losses = forward(self, *given)
        return losses._replace(total=losses.total * float("nan")) if calls >= 4 else losses

    monkeypatch.setattr(Distiller, "forward", spoilt)
    skipping = ["--optimisation.skipped_steps", "1"]
    with pytest.raises(ValueError, match=r"not finite in step 5, the second in a row; its batch"):
        main([*command, *skipping, "--steps", "9", "--output", str(tmp_path / "run")])
    kept = tmp_path / "run" / "checkpoints" / "step-3" / "tensors.safetensors"
    assert all(
        value.isfinite().all() for value in load_file(kept).values() if value.is_floating_point()
    )
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [2, 4]
    assert list((tmp_path / "run" / "bad_batches").glob("step-5-*.json"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run" / "student").exists()


def test_different_vocabularies_are_refused(tmp_path, command, tokenizer):
    other = tmp_path / "other"
    tiny_model("xlm-r", len(tokenizer)).save_pretrained(other)
    pieces = AutoTokenizer.from_pretrained(command[1])
    pieces.add_tokens(["neologism"])
    pieces.save_pretrained(other)
    given = [*command[:4], *TINY_RUN[len(TINY_STUDENT) :], "--student", str(other)]
    said = "--student: its vocabulary has 301 entries, the teacher's 300"
    with pytest.raises(ValueError, match=said):
        main([*given, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_sequence_longer_than_the_positions_is_refused(tmp_path, command):
    with pytest.raises(ValueError, match=r"max_length: got 65, .* teacher has positions for 64"):
        main([*command, "--corpus.max_length", "65", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_empty_corpus_is_refused(tmp_path, teacher_folder):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        main(["--teacher", str(teacher_folder), "--corpus", str(tmp_path / "empty.txt"), *TINY_RUN])


def test_the_command_ends_in_one_line_and_exit_code_2(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "comet.distill", "--teacher", "./nowhere", "--corpus", "toy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "comet.distill: error: --teacher: nowhere is not a folder"
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_quickstart():
    assert distill_module._default_recipe({}) == "quickstart"
    assert distill_module._default_recipe({"corpus.paths": ["x"]}) is None


def test_a_streamed_corpus_is_announced_without_counts():
    corpus = SimpleNamespace(
        counts={"hau": None, "swa": 1200}, probabilities={"hau": 0.75, "swa": 0.25}
    )
    assert mixture(corpus) == "corpus   hau streamed (75%), swa 1,200 (25%)"


def test_a_tokenizer_with_more_entries_than_the_teacher_embeds_is_refused(tmp_path, command):
    other = tmp_path / "other"
    shutil.copytree(command[1], other)
    pieces = AutoTokenizer.from_pretrained(other)
    pieces.add_tokens(["neologism"])
    pieces.save_pretrained(other)
    with pytest.raises(ValueError, match="301 entries, the model embeds 300"):
        main(["--teacher", str(other), *command[2:], "--output", str(tmp_path / "run")])


def test_sizes_beside_a_student_of_its_own_are_refused(command, finished):
    with pytest.raises(ValueError, match=r"student\.layers: got 2, expected nothing"):
        main([*command, "--student", str(finished / "student")])
