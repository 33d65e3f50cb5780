"""What cards say, when they are written, and when they are not."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard
from tiny import TINY_RUN
from tiny_tasks import recipe_for, write_sentiment
from tuned_models import save_tiny

from comet import card as card_module
from comet.adapt import main as adapt
from comet.card import card, carry, is_edited, main, models_of
from comet.cards.lineage import base_of, is_hub_id, plain_name
from comet.cards.markdown import code, escaped, fenced
from comet.distill import main as distill
from comet.evaluate import evaluate
from comet.finetune import finetune

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--steps", "4", "--run.checkpoint_every", "50"]


@pytest.fixture(scope="module")
def licensed(teacher_folder, tmp_path_factory):
    """A teacher that somebody else has described."""
    folder = tmp_path_factory.mktemp("somewhere") / "afro-teacher" / "model"
    shutil.copytree(teacher_folder, folder)
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\nbase_model: someone/large\ntags: [x]\n---\nA teacher.\n"
    )
    return folder


@pytest.fixture(scope="module")
def student(licensed, corpus_folder, tmp_path_factory):
    """The run of a student."""
    folder = tmp_path_factory.mktemp("runs") / "afro-student"
    distill(
        [
            "--teacher",
            str(licensed),
            "--corpus",
            str(corpus_folder),
            *TINY_RUN,
            *SHORT,
            "--output",
            str(folder),
        ]
    )
    return folder


@pytest.fixture(scope="module")
def tuned(student, tmp_path_factory):
    """That student on a task, with two seeds, evaluated against TF-IDF."""
    data = write_sentiment(tmp_path_factory.mktemp("data") / "tweets", ("hau", "swa", "yor"))
    folder = tmp_path_factory.mktemp("runs") / "sentiment"
    recipe = recipe_for(student / "student", data, seeds=[0, 3], epochs=1)
    finetune(recipe, folder)
    evaluate(folder, unseen=["yor"], floor="tfidf")
    return folder


def read(folder):
    return HubCard.load(folder / "README.md")


def words(folder):
    return (folder / "README.md").read_text("utf-8")


def test_a_student_s_card_says_what_its_run_holds(student, corpus_folder):
    found = read(student / "student")
    assert found.data.to_dict() == {
        "base_model": ["someone/large"], "language": ["ha", "sw"], "library_name": "transformers",
        "license": "cc-by-4.0", "pipeline_tag": "fill-mask", "tags": ["comet", "knowledge-distillation"],
    }  # fmt: skip
    text = found.text
    agreement = json.loads((student / "agreement.json").read_text())["after"]
    for language in ("hau", "swa"):
        one = agreement[language]
        assert f"| {language} | {one['kl']:.4f} | {one['top1']:.1%} |" in text
    tokens = json.loads((student / "metrics.jsonl").read_text().splitlines()[-1])["tokens"]
    assert f"4 steps of 8 sequences, {tokens} tokens seen" in text
    assert "Teacher: `afro-teacher`; frozen. The student started from" in text
    assert f"Text: `{corpus_folder.name}`; languages: hau and swa." in text
    assert "Documents: hau 400, swa 400." in text
    assert "0.5 · KL at temperature 2 on all tokens" in text
    assert "kronecker projection, which is not part of the model" in text
    assert "cc-by-4.0, inherited from the teacher, `afro-teacher`." in text
    assert "arXiv:2502.18020" in text
    (unknown,) = re.findall(r"hau (\d+\.\d\d%) and \d", text)
    record = json.loads((student / "run.json").read_text())
    assert unknown == f"{record['coverage']['hau']['unknown_rate']:.2%}"
    size = (student / "student/model.safetensors").stat().st_size
    assert f"({size:,} bytes)" in text


def test_a_card_names_no_folder_of_the_machine(student, tuned):
    for model in models_of(student) + models_of(tuned):
        text = words(model)
        assert "/tmp" not in text
        assert str(Path.home()) not in text
        (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        written = yaml.safe_load((student / "recipe.yaml").read_text())
        assert yaml.safe_load(recipe).keys() >= written.keys() - {"student", "corpus"}


def test_the_scores_of_a_task(tuned):
    scores = json.loads((tuned / "scores-test.json").read_text())
    for place, seed in enumerate((0, 3)):
        found = read(tuned / f"seed-{seed}/model")
        results = {one.dataset_config: one for one in found.data.eval_results}
        assert results.keys() == {"hau", "swa", "yor"}
        for language, one in scores["languages"].items():
            measure = one["weighted_f1"]
            result = results[language]
            assert result.metric_value == round(measure["values"][place], 4)
            assert (result.metric_type, result.dataset_split) == ("f1", "test")
            interval = f"{100 * measure['low']:.1f} to {100 * measure['high']:.1f}"
            row = f"| {100 * measure['values'][place]:.1f} | {100 * measure['mean']:.1f} | {interval} |"
            assert row in found.text
        assert found.text.index("afrisenti, test,") < found.text.index("afrisenti, dev, by which")
        assert found.data.license == "cc-by-4.0"
        assert found.data.base_model == ["someone/large"]
        assert "The floor, tfidf, is better than this model on" in found.text
        assert "yor (not trained on)" in found.text
        assert "counts by its beginning alone" in found.text


def test_a_card_says_how_much_of_a_split_the_model_has_seen(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    for split in ("dev", "test"):
        scores = json.loads((run / f"scores-{split}.json").read_text())
        hau = scores["languages"]["hau"]
        hau["overlap"] = {"train": 7, "any": 7, "without": {"weighted_f1": {"mean": 0.4321}}}
        (run / f"scores-{split}.json").write_text(json.dumps(scores))
    model = run / "seed-0/model"
    (model / "README.md").unlink()
    main([str(model)])
    for others, count in (("train or dev", 60), ("train", 50)):
        said = f"Some of these texts stand in {others} too, so that the model has seen them: "
        assert f"{said}hau 7 of {count} (43.2 without)." in words(model)


def test_names_from_data_are_no_markup(tuned, tmp_path):
    evil = "<script>alert(1)</script> | a_b *c* `d` \n## Licence\n\nmine"
    copy = tmp_path / "run"
    shutil.copytree(tuned, copy)
    model = copy / "seed-0/model"
    for file in (*copy.glob("scores-*.json"), copy / "run.json"):
        text = file.read_text("utf-8").replace('"hau', json.dumps(f"hau {evil}")[:-1])
        file.write_text(text.replace("tfidf", json.dumps(f"tfidf {evil}")[1:-1]), "utf-8")
    content = json.loads((model / "comet.json").read_text("utf-8"))
    content["labels"] = [evil, f"no {evil}", "yes"]
    content.pop("sha256", None)  # as its owner does who changes it
    (model / "comet.json").write_text(json.dumps(content))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    recipe["task"]["data"] = f"{evil}\n```\n<img src=x>"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    text = card(model)
    found = HubCard(text)
    assert found.data.eval_results[0].dataset_config.startswith("hau <script>")
    fence = "````yaml"
    before, _, rest = found.text.partition(fence)
    after = rest.partition("\n````\n")[2]
    plain = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", (before + after).replace(r"\`", ""))
    assert "<script" not in plain
    assert "<img" not in plain
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\| a_b \\*c\\* \\`d\\` \\#\\# Licence mine"
        in found.text
    )
    assert text.count("\n## Licence\n") == 1
    tables = (before + after).split("\n\n")
    for rows in ([line for line in one.splitlines() if line[:2] == "| "] for one in tables):
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) <= 1


def test_markdown_of_names():
    assert escaped("weighted_f1 of pt_br, hau #1") == "weighted_f1 of pt_br, hau \\#1"
    assert escaped("_a_ [b](c) & <d>\n# e") == "\\_a\\_ \\[b\\](c) &amp; &lt;d&gt; \\# e"
    assert code("a`b") == "``a`b``"
    assert code("`a\nb`") == "`` `a b` ``"
    assert fenced("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"


def test_the_floor_has_a_card_too(tuned):
    found = read(tuned / "tfidf/seed-0/hau/model")
    assert found.data.library_name == "comet"
    assert found.data.base_model is None
    assert [one.dataset_config for one in found.data.eval_results] == ["hau"]
    assert "from transformers" not in found.text


def test_a_card_is_the_same_whenever_it_is_written(student, tuned):
    for run in (student, tuned):
        before = {model: words(model) for model in models_of(run)}
        for model in before:
            (model / "README.md").unlink()
        main([str(run)])
        assert {model: words(model) for model in models_of(run)} == before


def test_no_default_of_today_is_told_of_an_older_run(student, tmp_path):
    run = tmp_path / "afro-student"
    shutil.copytree(student, run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["student"]["initial"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main([str(run)])
    assert "frozen.\n" in words(run / "student")
    assert "started from" not in words(run / "student")


def test_another_licence_takes_the_old_one_s_name_and_link_away(tokenizer, tmp_path):
    save_tiny(tmp_path, tokenizer)
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\n---\n# Mine\n"
    )
    main([str(tmp_path), "--license", "mit", "--force"])
    assert read(tmp_path).data.to_dict() == {"license": "mit"}


@pytest.mark.parametrize("name", ["student", "tuned"])
def test_the_code_of_a_card_runs(name, student, tuned):
    folder = {"student": student / "student", "tuned": tuned / "seed-0/model"}[name]
    blocks = re.findall(r"```python\n(.*?)```", words(folder), re.DOTALL)
    assert len(blocks) == {"student": 1, "tuned": 2}[name]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=folder, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(blocks)


def test_an_edited_card_stays(tuned, tmp_path, capsys):
    run = tmp_path / "sentiment"
    shutil.copytree(tuned, run)
    mine = run / "seed-3/model"
    (mine / "README.md").write_text(words(mine).replace("# sentiment", "# My sentiment"))
    other = words(run / "seed-0/model")
    with pytest.raises(ValueError, match=r"seed-3/model/README.md was edited.*--force") as error:
        main([str(run)])
    assert "\n" not in str(error.value)
    (run / "scores-test.json").unlink()
    evaluate(run, split="dev", floor=run / "tfidf")
    assert "was edited and stays" in capsys.readouterr().out
    assert "# My sentiment" in words(mine)
    assert "(dev)" in words(run / "seed-0/model")
    assert words(run / "seed-0/model") != other
    main([str(run), "--force"])
    assert not is_edited(mine)


def test_line_ends_of_another_system_are_no_edit(student, tmp_path):
    (tmp_path / "README.md").write_bytes(words(student / "student").replace("\n", "\r\n").encode())
    assert not is_edited(tmp_path)


def test_a_licence_that_was_filled_in_stays_and_is_inherited(student, tmp_path):
    run = tmp_path / "afro-student"
    shutil.copytree(student, run)
    main([str(run), "--license", "mit"])
    main([str(run)])
    assert read(run / "student").data.license == "mit"
    assert "inherited" not in words(run / "student").split("## Licence")[1]
    assert base_of(str(run / "student"), online=False).licence == {"license": "mit"}


def test_a_teacher_of_nothing_has_no_licence_to_inherit(corpus_folder, tmp_path):
    shape = [
        "--model.layers", "3", "--model.hidden_size", "32", "--model.heads", "2", "--model.intermediate_size", "16",
        "--model.vocabulary_size", "200", "--warm_start.steps", "0",
    ]  # fmt: skip
    adapt(
        ["--corpus", str(corpus_folder), *shape, "--corpus.workers", "0", *SHORT,
         "--optimisation.warmup_steps", "1", "--corpus.max_length", "24", "--batch-size", "8",
         "--output", str(tmp_path / "teacher")]
    )  # fmt: skip
    teacher = read(tmp_path / "teacher/model")
    assert teacher.data.license == "unknown"
    assert "trained from random weights: there is no licence to inherit" in teacher.text
    assert "masked loss" in teacher.text
    assert "Documents: hau 400, swa 400." in teacher.text
    distill(
        ["--teacher", str(tmp_path / "teacher/model"), "--corpus", str(corpus_folder), *TINY_RUN, *SHORT, "--output",
         str(tmp_path / "student")]
    )  # fmt: skip
    student = read(tmp_path / "student/student")
    assert "The teacher, `teacher`, was trained from random weights" in student.text
    assert student.data.license == "unknown"
    assert "trained-from-scratch" in student.data.tags


@pytest.mark.parametrize(
    "readme", [None, "No metadata.", "---\n[\n---\n", "---\nlicense: unknown\n---\n"]
)
def test_a_teacher_whose_licence_is_not_known(student, tmp_path, readme, licensed):
    teacher = tmp_path / "model"
    teacher.mkdir()
    if readme:
        (teacher / "README.md").write_text(readme)
    run = tmp_path / "run"
    shutil.copytree(student, run)
    (run / "student/README.md").unlink()
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(str(licensed), str(teacher)))
    main([str(run)])
    found = read(run / "student")
    assert found.data.license == "unknown"
    assert "fill it in with `python -m comet.card . --license ID`" in found.text


def test_training_ends_well_without_a_card_and_without_the_hub(
    licensed, corpus_folder, tmp_path, monkeypatch, capsys
):
    def broken(*_, **__):
        raise KeyError("whatever")

    monkeypatch.setattr(card_module, "gather", broken)
    given = ["--teacher", str(licensed), "--corpus", str(corpus_folder), *TINY_RUN, *SHORT]
    distill([*given, "--output", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "done"
    assert not (tmp_path / "run/student/README.md").exists()
    assert "python -m comet.card" in capsys.readouterr().out


def test_a_model_that_was_made_of_another_keeps_its_card(tuned, tokenizer, tmp_path):
    source, target = tuned / "seed-0/model", tmp_path / "trimmed"
    save_tiny(target, tokenizer)
    carry(source, target, "Trimmed.")
    found = read(target)
    assert not is_edited(target)
    assert found.data.eval_results == read(source).data.eval_results
    size = (target / "model.safetensors").stat().st_size
    assert f"({size:,} bytes)" in found.text
    assert found.text.index("- Trimmed.") < found.text.index("## Training")
    exported = tmp_path / "exported"
    shutil.copytree(target, exported)
    carry(target, exported, "Exported.", transformers=False)
    text = words(exported)
    assert "- Trimmed.\n- Exported.\n\n## Training" in text
    assert "from transformers" not in text
    assert read(exported).data.library_name == "onnx"
    assert "from comet import Classifier" in text
    main([str(exported)])  # no run around it: the card stays
    assert words(exported) == text
    main([str(exported), "--license", "apache-2.0"])
    assert read(exported).data.license == "apache-2.0"
    assert "- Exported." in words(exported)


def test_somebody_else_s_card_is_carried_as_theirs(licensed, tokenizer, tmp_path):
    save_tiny(tmp_path, tokenizer)
    carry(licensed, tmp_path, "Trimmed.")
    assert read(tmp_path).data.license == "cc-by-4.0"
    assert "A teacher.\n\n## What was done to it since" in words(tmp_path)
    assert is_edited(tmp_path)  # so that nothing overwrites it


def test_a_model_of_the_hub_without_its_card(teacher_folder, tmp_path):
    target = tmp_path / "trimmed"
    shutil.copytree(teacher_folder, target)
    carry(teacher_folder, target, "Trimmed.", origin="someone/large")
    found = read(target)
    assert found.data.base_model == ["someone/large"]
    assert (found.data.license, found.data.pipeline_tag) == ("unknown", "fill-mask")
    assert (
        "the model that it was made from, `someone/large`, is not there or was not read"
        in found.text
    )
    assert re.search(r"\d parameters", found.text)


def test_a_card_that_no_library_reads_is_carried_word_by_word(tokenizer, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    save_tiny(target, tokenizer)
    source.mkdir()
    (source / "README.md").write_text("---\n[\n---\nTheirs.\n")
    carry(source, target, "Trimmed.")
    assert words(target).startswith("---\n[\n---\nTheirs.\n\n## What was done to it since")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        main([str(tmp_path)])
    with pytest.raises(ValueError, match="is not a folder"):
        main([str(tmp_path / "none")])


def test_a_model_without_a_run_is_described_by_itself(tokenizer, tmp_path):
    save_tiny(tmp_path / "mine", tokenizer)
    text = card(tmp_path / "mine")
    assert "it tells texts apart as negative, neutral and positive" in text
    assert "## Training" not in text


def test_names_of_folders_and_hub_ids():
    assert plain_name("/home/a/runs/sentiment/seed-0/model") == "sentiment"
    assert plain_name("runs/afro/student") == "afro"
    assert plain_name("/model") == "model"
    assert is_hub_id("Davlan/afro-xlmr-large")
    assert not is_hub_id("/home/a/model")
    assert not is_hub_id("runs/afro/student")
    assert base_of("Davlan/afro-xlmr-large", online=False).hub_ids == ["Davlan/afro-xlmr-large"]


def test_a_licence_is_one_that_the_hub_knows(tokenizer, tmp_path):
    save_tiny(tmp_path, tokenizer)
    for given, near in (("MITT", "mit"), ("apache2", "apache-2.0"), ("cc-by-40", "cc-by-4.0")):
        with pytest.raises(
            ValueError, match=rf"--license: got '{given}' \(did you mean '{near}'\?\)"
        ):
            main([str(tmp_path), "--license", given])
    with pytest.raises(ValueError, match="`other` stands for a licence that it does not know"):
        main([str(tmp_path), "--license", "mine"])
    for given, meant in (("MIT", "mit"), ("Apache-2.0", "apache-2.0"), ("other", "other")):
        main([str(tmp_path), "--license", given, "--force"])
        assert read(tmp_path).data.license == meant
