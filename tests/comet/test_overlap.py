"""Texts that stand in two splits: found in whatever form, counted, and measured apart."""

import json
import shutil
import unicodedata

import pytest
from real_data import DATA, needs_real_data
from tiny_tasks import recipe_for, write_sentiment

from comet.evaluate import evaluate
from comet.evaluation import score_table
from comet.finetune import finetune
from comet.tasks import Example, TaskRecipe, open_task
from comet.tasks.overlap import counted, hashed, hashes, keep, kept, rows_of


def read_json(path):
    return json.loads(path.read_text())


def test_texts_are_the_same_in_any_normal_form_and_with_any_whitespace():
    text = "ọ̀rọ̀ tí ó dára"
    same = [
        unicodedata.normalize("NFD", text),
        f"  {text.replace(' ', chr(160))}\n",
        tuple(unicodedata.normalize("NFC", text).split()),
    ]
    examples = [Example(one, 0, "yor", row) for row, one in enumerate([*same, text.upper(), "ọ̀rọ̀"])]
    assert rows_of(examples, [hashed(Example(text, 1, "yor", 9))]) == [0, 1, 2]


def test_hashes_are_read_as_they_were_kept(tmp_path):
    data = write_sentiment(tmp_path / "data")
    train = open_task(TaskRecipe(data=str(data)), "train")
    texts = hashes({"train": train})
    assert kept(tmp_path) is None
    keep(texts, tmp_path)
    assert kept(tmp_path) == texts
    assert {language: len(its) for language, its in texts["train"].items()} == {
        "hau": 120,
        "swa": 120,
    }
    assert counted({"hau": 3, "swa": 0}, train, "dev") == "hau 3 of 120 texts stand in dev too"
    assert counted({"hau": 0}, train, "dev") == ""
    for content in ("{}", "[]", '{"format": 0}', '{"format": 1, "train": 3}', "not JSON"):
        (tmp_path / "texts.json").write_text(content)
        assert kept(tmp_path) is None


@pytest.fixture
def data(tmp_path):
    """Of 60 test texts of hau 20 stand in its train split, 10 in dev, and 5 of swa's train split; 7 of dev in train."""
    folder = write_sentiment(tmp_path / "data")
    lines = {
        (language, split): (folder / language / f"{split}.tsv").read_text("utf-8").splitlines()
        for language in ("hau", "swa")
        for split in ("train", "dev", "test")
    }
    lines["hau", "dev"][1:8] = lines["hau", "train"][1:8]
    lines["hau", "test"][1:21] = lines["hau", "train"][51:71]
    lines["hau", "test"][21:31] = lines["hau", "dev"][21:31]
    lines["hau", "test"][31:36] = lines["swa", "train"][1:6]
    for (language, split), rows in lines.items():
        text = "\n".join(rows) + "\n"
        if (language, split) == ("hau", "test"):
            text = unicodedata.normalize("NFD", text)
        (folder / language / f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


def counts(scores, language="hau"):
    found = scores["languages"][language]["overlap"]
    return {name: count for name, count in found.items() if name != "without"}


@pytest.mark.parametrize(("model", "of_swa"), [("encoder", 5), ("tfidf", 0)])
def test_the_overlap_is_counted_also_where_the_train_split_is_gone(
    teacher_folder, data, tmp_path, capsys, model, of_swa
):
    """A model for all languages has read the texts of all, one of a language those of its own."""
    given = {"epochs": 1} if model == "encoder" else {}
    recipe = recipe_for(teacher_folder if model == "encoder" else "tfidf", data, **given)
    dev = finetune(recipe, tmp_path / "run")
    assert "overlap  hau 7 of 50 texts stand in train too" in capsys.readouterr().out
    assert counts(dev) == {"train": 7, "any": 7}
    assert read_json(tmp_path / "run/run.json")["task"]["overlap"] == {
        "dev": {"train": {"hau": 7, "swa": 0}}
    }
    for language in ("hau", "swa"):
        (data / language / "train.tsv").unlink()
        (data / language / "dev.tsv").unlink()
    scores = evaluate(tmp_path / "run")
    expected = {"train": 20 + of_swa, "dev": 10, "any": 30 + of_swa}
    assert counts(scores) == expected
    assert counts(scores, "swa") == {"train": 0, "dev": 0, "any": 0}
    table = score_table(scores)
    without = scores["languages"]["hau"]["overlap"]["without"]["weighted_f1"]["mean"]
    (line,) = [one for one in table.splitlines() if one.startswith("hau")]
    assert line.split()[-2:] == [str(expected["any"]), f"{100 * without:.2f}"]
    assert "overlap: texts that stand in train or dev too; without: weighted_f1" in table
    model_folder = next((tmp_path / "run/seed-0").glob("**/model"))
    if model == "encoder":
        alone = evaluate(models=[model_folder], task=recipe.task, output=tmp_path / "alone")
        assert counts(alone) == expected
    (tmp_path / "run/texts.json").unlink()
    assert evaluate(tmp_path / "run")["languages"]["hau"]["overlap"] is None
    assert "overlap  not counted" in capsys.readouterr().out


def test_a_run_without_hashes_is_compared_with_the_data_as_it_is(teacher_folder, data, tmp_path):
    finetune(recipe_for(teacher_folder, data, epochs=1), tmp_path / "run")
    (tmp_path / "run/texts.json").unlink()
    shutil.copytree(data / "hau", data / "ibo")
    scores = evaluate(tmp_path / "run", unseen=["ibo"])
    assert counts(scores) == counts(scores, "ibo") == {"train": 25, "dev": 10, "any": 35}


@needs_real_data
@pytest.mark.parametrize(
    ("language", "split", "expected"),
    [("pcm", "test", 926), ("hau", "dev", 215), ("yor", "dev", 237)],
)
def test_afrisenti_overlaps_itself(language, split, expected):
    recipe = TaskRecipe(data=str(DATA / "afrisenti"), languages=[language])
    train, other = (open_task(recipe, name) for name in ("train", split))
    known = hashes({"train": train})["train"][language]
    assert len(rows_of(other.examples, known)) == expected
