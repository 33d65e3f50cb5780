"""Fine-tuning and evaluation end to end on a tiny model."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from tiny_tasks import recipe_for, write_entities, write_sentiment
from transformers import AutoModelForMaskedLM, BartConfig, DistilBertConfig, XLMConfig

from comet import evaluation, finetune
from comet.evaluate import evaluate
from comet.evaluate import main as evaluate_main
from comet.finetune import finetune as run_finetune
from comet.finetune import main as finetune_main
from comet.predictions import read_predictions
from comet.students import load_tokenizer
from comet.task_model import ModelCard, load_tuned, make_task_model, read_card
from comet.tasks import open_task
from comet.tuned_runs import member_folder


def read_json(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(teacher_folder, sentiment, tmp_path_factory):
    """Two seeds that have learnt something."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    recipe = recipe_for(
        teacher_folder, sentiment, seeds=[0, 3], epochs=4, dropout=0.1, learning_rate=3e-3
    )
    run_finetune(recipe, folder)
    return folder


def test_a_run_leaves_for_each_seed_the_model_that_did_best_on_dev(run):
    for seed in (0, 3):
        folder = run / f"seed-{seed}"
        measured = lines(folder / "evaluation.jsonl")
        assert [line["step"] for line in measured] == [*range(5, 60, 5), 60]
        scores = [line["all"]["weighted_f1"] for line in measured]
        card = read_card(folder / "model")
        assert card.dev == max(scores)
        assert card.step == measured[int(np.argmax(scores))]["step"]
        assert (card.seed, card.languages, card.labels) == (
            seed,
            ["hau", "swa"],
            ["negative", "neutral", "positive"],
        )
        answers = read_predictions(run / "predictions" / "dev" / f"seed-{seed}.jsonl")
        by_language = [weighted_f1(answers, language) for language in ("hau", "swa")]
        assert np.mean(by_language) == pytest.approx(card.dev, abs=1e-9)
        assert not (folder / "model" / "config.json").read_text().count("comet_tap")
    assert read_json(run / "run.json")["state"] == "done"
    scores = read_json(run / "scores-dev.json")
    assert scores["seeds"] == [0, 3]
    assert scores["trained_on"] == ["hau", "swa"]


def weighted_f1(answers, language):
    its = [one for one in answers if one.language == language]
    return f1_score([one.gold for one in its], [one.predicted for one in its], average="weighted")


def test_the_model_learns_what_can_be_learnt(run):
    assert read_json(run / "scores-dev.json")["mean"]["weighted_f1"]["mean"] > 0.6


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_rate_that_is_far_too_high_ends_with_one_line(
    teacher_folder, sentiment, tmp_path, epochs
):
    recipe = recipe_for(teacher_folder, sentiment, epochs=epochs, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"training diverged: .* step \d.*lower learning rate"):
        run_finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "seed-0" / "model").exists()


def test_fine_tuning_reads_no_test_label_and_dev_alone_chooses(
    teacher_folder, sentiment, run, tmp_path, monkeypatch
):
    """Without a test split the bytes are the same; with the dev labels turned round another step is the best."""
    without = tmp_path / "data"
    shutil.copytree(sentiment, without)
    for path in without.glob("*/test.tsv"):
        path.unlink()
    opened = []
    for module in (finetune, evaluation):
        opening = module.open_task

        def noted(recipe, split, *rest, opening=opening, **more):
            opened.append(split)
            return opening(recipe, split, *rest, **more)

        monkeypatch.setattr(module, "open_task", noted)
    recipe = recipe_for(
        teacher_folder, without, seeds=[0], epochs=4, dropout=0.1, learning_rate=3e-3
    )
    run_finetune(recipe, tmp_path / "run")
    assert set(opened) == {"train", "dev"}
    weights = [
        folder / "seed-0" / "model" / "model.safetensors" for folder in (run, tmp_path / "run")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    for path in without.glob("*/dev.tsv"):
        text = path.read_text()
        for old, new in (
            ("neg", "?"),
            ("positive", "negative"),
            ("neutral", "positive"),
            ("?ative", "neutral"),
        ):
            text = text.replace(old, new)
        path.write_text(text)
    run_finetune(recipe, tmp_path / "other")
    cards = [read_card(folder / "seed-0" / "model") for folder in (run, tmp_path / "other")]
    assert cards[0].step != cards[1].step
    losses = [
        [line["loss"] for line in lines(folder / "seed-0" / "metrics.jsonl")]
        for folder in (run, tmp_path / "other")
    ]
    assert losses[0] == losses[1]


def test_accumulation_changes_neither_loss_nor_model(teacher_folder, sentiment, tmp_path):
    for pieces in (1, 4):
        recipe = recipe_for(
            teacher_folder, sentiment, dropout=0.0, accumulation=pieces, class_weights="balanced"
        )
        run_finetune(recipe, tmp_path / str(pieces))
    one, four = (tmp_path / name / "seed-0" for name in ("1", "4"))
    for ours, theirs in zip(
        lines(one / "metrics.jsonl"), lines(four / "metrics.jsonl"), strict=True
    ):
        for name in ("loss", "loss/hau", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    weights = [
        load_file(folder / "checkpoints" / "step-30" / "tensors.safetensors")
        for folder in (one, four)
    ]
    start = load_file(teacher_folder / "model.safetensors")[
        "roberta.encoder.layer.0.output.dense.weight"
    ]
    name = "module/encoder.model.roberta.encoder.layer.0.output.dense.weight"
    moved = (weights[0][name] - start).norm()
    assert (weights[0][name] - weights[1][name]).norm() < 0.02 * moved


def test_a_student_is_measured_against_teacher_and_floor_and_on_unseen_languages(
    run, teacher_folder, sentiment, tmp_path
):
    student = tmp_path / "student"
    recipe = recipe_for(
        teacher_folder,
        sentiment,
        seeds=[1, 2],
        teacher=run,
        alpha=0.6,
        initial="random",
        learning_rate=1e-3,
    )
    run_finetune(recipe, student)
    names = set(lines(student / "seed-1" / "metrics.jsonl")[0])
    assert {"labels", "kd", "attention", "labels/hau"} <= names
    scores = evaluate(student, unseen=["yor"], teacher=run, floor="tfidf")
    assert scores == read_json(student / "scores-test.json")

    def mean(folder, seeds):
        per_seed = [
            np.mean(
                [
                    weighted_f1(
                        read_predictions(folder / "predictions/test" / f"seed-{seed}.jsonl"), one
                    )
                    for one in ("hau", "swa")
                ]
            )
            for seed in seeds
        ]
        return np.mean(per_seed)

    ours, theirs, floor = mean(student, [1, 2]), mean(run, [0, 3]), mean(student / "tfidf", [0])
    assert scores["mean"]["weighted_f1"]["mean"] == pytest.approx(ours)
    assert scores["floor"]["mean"]["mean"] == pytest.approx(floor)
    retention = scores["retention"]
    assert retention["teacher"] == "student"
    assert retention["raw"]["mean"] == pytest.approx(ours / theirs)
    if theirs > floor:
        assert retention["above_floor"]["mean"] == pytest.approx((ours - floor) / (theirs - floor))
    else:
        assert retention["above_floor"]["mean"] is None
    assert scores["languages"]["yor"]["trained"] is False
    unseen = [
        weighted_f1(read_predictions(student / "predictions/test" / f"seed-{seed}.jsonl"), "yor")
        for seed in (1, 2)
    ]
    assert scores["unseen_mean"]["weighted_f1"]["values"] == pytest.approx(unseen)
    assert scores["size"]["parameters"] == sum(
        value.numel() for value in load_file(student / "seed-1/model/model.safetensors").values()
    )


def test_what_was_asked_once_is_not_asked_again(run, sentiment, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("test"))
    asked = []
    answers = evaluation._answers
    monkeypatch.setattr(
        evaluation,
        "_answers",
        lambda model, split: asked.append(split.languages) or answers(model, split),
    )
    first = evaluate(folder)
    assert asked == [("hau", "swa")] * 2
    assert evaluate(folder, unseen=["yor"])["mean"] == first["mean"]
    assert asked[2:] == [("yor",)] * 2
    assert evaluate(folder) == first
    assert len(asked) == 4
    assert "asked before, taken from" in capsys.readouterr().out
    other = tmp_path / "data"
    shutil.copytree(sentiment, other)
    path = other / "swa" / "test.tsv"
    path.write_text(path.read_text().replace("neutral", "positive"))
    evaluate_main(["--run", str(folder), "--data", str(other)])
    assert asked[4:] == [("swa",)] * 2
    weights = folder / "seed-0" / "model" / "model.safetensors"
    shutil.copy(folder / "seed-3" / "model" / "model.safetensors", weights)
    evaluate(folder)
    assert asked[6:] == [("hau", "swa"), ("swa",)]


def test_models_are_measured_without_their_run(run, sentiment, tmp_path, capsys):
    models = [str(run / f"seed-{seed}" / "model") for seed in (0, 3)]
    arguments = ["--model", *models, "--data", str(sentiment), "--split", "dev", "--confusion"]
    evaluate_main([*arguments, "--output", str(tmp_path / "out"), "--name", "both"])
    found, expected = (
        read_json(tmp_path / "out/scores-dev.json"),
        read_json(run / "scores-dev.json"),
    )
    assert found.pop("system") == "both"
    assert expected.pop("system") == "student"
    assert found == expected
    printed = capsys.readouterr().out
    assert "hau: gold by predicted" in printed
    assert f"{100 * found['mean']['weighted_f1']['mean']:.2f}" in printed
    with pytest.raises(ValueError, match="--output: got nothing"):
        evaluate_main(arguments)


def test_a_model_for_each_language_imitates_a_teacher_for_all(
    run, teacher_folder, sentiment, tmp_path, capsys
):
    folder = tmp_path / "run"
    finetune_main([
        "--model", str(teacher_folder), "--data", str(sentiment), "--languages", "ha,swa", "--teacher", str(run),
        "--objective.alpha", "1", "--per-language", "--epochs", "1", "--model.max_length", "32",
        "--learning-rate", "1e-3", "--class-weights", "balanced", "--seeds", "0", "--output", str(folder),
    ])  # fmt: skip
    for language in ("hau", "swa"):
        assert read_card(member_folder(folder, 0, language) / "model").languages == [language]
    printed = capsys.readouterr().out
    assert "of 2 seeds the best on dev" in printed
    scores = evaluate(folder, unseen=["yor"], floor="tfidf", teacher=run)
    assert list(scores["languages"]) == ["hau", "swa"]
    assert (
        scores["size"]["parameters"]
        == 2 * read_card(folder / "seed-0/hau/model").size["parameters"]
    )
    with pytest.raises(ValueError, match=r"--teacher: .*hau.* was fine-tuned on hau, not on swa"):
        run_finetune(recipe_for(teacher_folder, sentiment, teacher=folder), tmp_path / "refused")


def test_words_are_tagged_and_measured_by_entity(teacher_folder, tmp_path):
    pytest.importorskip("nervaluate")
    data = write_entities(tmp_path / "data")
    recipe = recipe_for(
        teacher_folder,
        data,
        task="masakhaner",
        languages=["hau"],
        epochs=6,
        learning_rate=3e-3,
    )
    scores = run_finetune(recipe, tmp_path / "run")
    assert scores["measure"] == "f1"
    assert scores["mean"]["f1"]["mean"] == pytest.approx(
        read_card(tmp_path / "run/seed-0/model").dev
    )
    teacher = tmp_path / "run"
    again = recipe_for(
        teacher_folder,
        data,
        task="masakhaner",
        languages=["hau"],
        teacher=teacher,
        initial="random",
    )
    run_finetune(again, tmp_path / "student")
    found = evaluate(tmp_path / "student", teacher=teacher)
    assert math.isfinite(found["retention"]["raw"]["mean"])
    with pytest.raises(ValueError, match="tfidf for tags of words"):
        evaluate(tmp_path / "student", floor="tfidf")


def test_random_weights_in_the_shape_of_a_model(teacher_folder, sentiment, tmp_path):
    recipe = recipe_for(teacher_folder, sentiment, initial="random", epochs=1, learning_rate=1e-6)
    run_finetune(recipe, tmp_path / "run")
    ours = load_tuned(tmp_path / "run/seed-0/model").model.state_dict()
    theirs = load_file(teacher_folder / "model.safetensors")
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    assert ours[name].shape == theirs[name].shape
    alike = torch.nn.functional.cosine_similarity(ours[name].flatten(), theirs[name].flatten(), 0)
    assert abs(alike) < 0.2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dropout": 0.3}, (0.3, 0.3, 0.3)),
        ({"dropout": 0.3, "attention_dropout": 0}, (0.3, 0, 0.3)),
    ],
)
def test_dropout_of_hidden_states_attention_and_classifier(
    teacher_folder, sentiment, given, expected
):
    recipe = recipe_for(teacher_folder, sentiment, **given)
    task = open_task(recipe.task, "train").task
    config = make_task_model(recipe.model, task, load_tokenizer(str(teacher_folder))).config
    found = (config.hidden_dropout_prob, config.attention_probs_dropout_prob)
    assert (*found, config.classifier_dropout) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DistilBertConfig(dim=32, hidden_dim=48, n_layers=1, n_heads=2, vocab_size=300), None),
        (XLMConfig(emb_dim=32, n_layers=1, n_heads=2, n_words=300), None),
        (BartConfig(vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1,
                    encoder_ffn_dim=16, decoder_ffn_dim=16), "type bart, an encoder with a decoder"),
    ],
    ids=["distilbert", "xlm", "bart"],
)  # fmt: skip
def test_heads_of_other_families_are_new_and_encoders_are_whole(
    teacher_folder, sentiment, tmp_path, config, said
):
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(tmp_path)
    recipe = recipe_for(tmp_path, sentiment)
    task, tokenizer = open_task(recipe.task, "train").task, load_tokenizer(str(teacher_folder))
    if said is None:
        tuned = make_task_model(recipe.model, task, tokenizer)
        assert type(tuned).__name__.endswith("ForSequenceClassification")
        weights = load_file(tmp_path / "model.safetensors")
        lost = next(name for name in weights if name.startswith(f"{model.base_model_prefix}."))
        del weights[lost]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        said = f"has no weights for {lost}"
    with pytest.raises(ValueError, match=f"--model: .*{said}"):
        make_task_model(recipe.model, task, tokenizer)


def test_a_fine_tuned_model_without_its_head_is_refused(teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "model")
    ModelCard("t", "sequence", ["a", "b"], ["hau"], 8, 0, 0.5, 1, None).write(tmp_path / "model")
    with pytest.raises(ValueError, match=r"--model: .* has no weights for classifier\."):
        load_tuned(tmp_path / "model")


@pytest.mark.parametrize("model", ["encoder", "tfidf"])
def test_a_language_of_one_label_is_refused_and_leaves_no_run_behind(
    teacher_folder, tmp_path, model
):
    data = write_sentiment(tmp_path / "data")
    path = data / "swa/train.tsv"
    path.write_text(re.sub("negative|positive", "neutral", path.read_text("utf-8")), "utf-8")
    recipe = recipe_for(teacher_folder if model == "encoder" else "tfidf", data)
    message = "task.data: the train split has 120 texts of swa, all labelled neutral; expected two"
    with pytest.raises(ValueError, match=message):
        run_finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sentences_without_an_entity_are_refused(teacher_folder, tmp_path):
    data = write_entities(tmp_path / "data")
    path = data / "hau/train.txt"
    path.write_text(re.sub("[BI]-LOC", "O", path.read_text("utf-8")), "utf-8")
    recipe = recipe_for(teacher_folder, data, task="masakhaner", languages=["hau"])
    with pytest.raises(ValueError, match="60 sentences of hau, all labelled O; expected two"):
        run_finetune(recipe, tmp_path / "run")


def test_a_model_that_is_not_there_leaves_no_run_behind(sentiment, tmp_path):
    with pytest.raises(ValueError, match=r"--model: .*nowhere"):
        run_finetune(recipe_for(tmp_path / "nowhere", sentiment), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_all_its_seeds_is_not_measured(teacher_folder, sentiment, tmp_path):
    """Else its mean and interval would be of fewer seeds than its recipe says."""
    run_finetune(recipe_for(teacher_folder, sentiment, seeds=[0, 1], epochs=1), tmp_path / "run")
    assert evaluate(tmp_path / "run", split="dev")["seeds"] == [0, 1]
    (tmp_path / "run/seed-1/model/comet.json").unlink()
    with pytest.raises(ValueError, match=r"--run: .* holds no model of seed 1 yet; go on with"):
        evaluate(tmp_path / "run", split="dev")


def stop(run):
    """Mark a finished run, and the models in it, as stopped."""
    for record in run.glob("**/run.json"):
        record.write_text(json.dumps({**read_json(record), "state": "failed"}))


def test_resuming_with_other_labels_model_or_teacher_is_refused(
    teacher_folder, sentiment, tmp_path
):
    shutil.copytree(sentiment, tmp_path / "data")
    shutil.copytree(teacher_folder, tmp_path / "model")
    teacher = tmp_path / "teacher"
    run_finetune(recipe_for(teacher_folder, sentiment, epochs=1), teacher)
    run = tmp_path / "run"
    recipe = recipe_for(
        tmp_path / "model", tmp_path / "data", epochs=1, teacher=teacher, floor_weight=0.1
    )
    run_finetune(recipe, run)
    stop(run)
    changes = {
        tmp_path / "data/hau/dev.tsv": "--resume: dev split .* not what the run in",
        tmp_path / "model/config.json": "--resume: model configuration .* not what the run in",
        teacher / "seed-0/model/model.safetensors": "--resume: teacher weights .* not what the run",
        run / "floor.safetensors": r"floor.safetensors is damaged .*remove it",
    }
    for file, said in changes.items():
        before = file.read_bytes()
        changed = before.replace(b"positive", b"negative", 1).replace(b"1e-12", b"1e-03")
        file.write_bytes(changed if changed != before else before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ValueError, match=said):
            run_finetune(recipe, run, resume=True)
        file.write_bytes(before)
    (run / "run.json").unlink()  # what the checkpoint of each model names is compared too
    edited = (tmp_path / "data/hau/train.tsv").read_text().replace("positive", "negative", 1)
    (tmp_path / "data/hau/train.tsv").write_text(edited)
    with pytest.raises(ValueError, match=r"--resume: train split .* not what the run in .*seed-0"):
        run_finetune(recipe, run, resume=True)


def test_a_baseline_that_was_fitted_on_other_rows_is_not_taken(run, sentiment, tmp_path):
    shutil.copytree(sentiment, tmp_path / "data")
    given = [
        "--run", str(run), "--data", str(tmp_path / "data"), "--split", "dev", "--floor", "tfidf",
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    evaluate_main(given)
    evaluate_main(given)
    file = tmp_path / "data/hau/train.tsv"
    file.write_text(file.read_text().replace("positive", "negative", 1))
    with pytest.raises(ValueError, match="was fitted on other data; remove it"):
        evaluate_main(given)


def test_a_finished_run_is_done_and_more_epochs_extend_it(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    finetune_main(["--resume", "--output", str(copy)])
    said = capsys.readouterr().out
    assert "has done its 4 epochs; for more, python -m comet.finetune --resume" in said
    assert "--epochs 8" in said
    assert read_json(copy / "run.json") == read_json(run / "run.json")
    with pytest.raises(ValueError, match=r"optimisation\.epochs: got 3, but .* has done 4"):
        finetune_main(["--resume", "--output", str(copy), "--epochs", "3"])
    finetune_main(["--resume", "--output", str(copy), "--epochs", "5"])
    assert "steps    75 instead of 60: from step 60 on" in capsys.readouterr().out
    for seed in (0, 3):
        measured = lines(copy / f"seed-{seed}" / "evaluation.jsonl")
        assert [line["step"] for line in measured] == [*range(5, 75, 5), 75]
        scores = [line["all"]["weighted_f1"] for line in measured]
        card = read_card(copy / f"seed-{seed}" / "model")
        assert card.dev == max(scores)
        assert card.step == measured[int(np.argmax(scores))]["step"]
        answers = read_predictions(copy / "predictions" / "dev" / f"seed-{seed}.jsonl")
        by_language = [weighted_f1(answers, language) for language in ("hau", "swa")]
        assert np.mean(by_language) == pytest.approx(card.dev, abs=1e-9)


def test_a_finished_baseline_is_done(sentiment, tmp_path, capsys):
    run_finetune(recipe_for("tfidf", sentiment), tmp_path / "run")
    before = read_json(tmp_path / "run" / "run.json")
    finetune_main(["--resume", "--output", str(tmp_path / "run")])
    assert f"done     {tmp_path / 'run'}" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "run.json") == before
