import json
import sys

import pytest

from comet.tasks import TaskRecipe, open_task

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))


def test_a_data_set_is_read_by_the_datasets_library(tmp_path):
    folder = tmp_path / "tweets"
    rows = [
        {"text": "a", "label": "up", "lang": "ha"},
        {"text": " ", "label": "down", "lang": "ha"},
        {"text": "b", "label": "down", "lang": "yo"},
    ]
    write(folder / "train.jsonl", rows)
    write(folder / "validation.jsonl", rows)
    data = open_task(
        TaskRecipe("sequence", data=f"hub:{folder}", language_column="lang"), "dev", ["hau", "yor"]
    )
    assert data.task.labels == ("down", "up")
    assert [(one.language, one.row, one.text, one.label) for one in data.examples] == [
        ("hau", 1, "a", 1),
        ("yor", 3, "b", 0),
    ]
    (problem,) = data.problems
    assert (problem.line, problem.reason) == (2, "empty text")
    assert problem.file.startswith("hub:")
    with pytest.raises(ValueError, match=r"has the splits .*, expected test"):
        open_task(TaskRecipe("sequence", data=f"hub:{folder}"), "test", ["hau"])


def test_numbered_classes_have_names_and_languages_configurations(monkeypatch):
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER"]))
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "tags": tags}
    )
    tables = {
        "hau": [{"tokens": ["Amina", "ta"], "tags": [1, 0]}, {"tokens": ["a"], "tags": [-1]}],
        "yor": [{"tokens": ["b"], "tags": [0]}],
    }

    def load_dataset(name, configuration, split):
        return datasets.Dataset.from_list(tables[configuration], features=features, split=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: list(tables))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, one: ["train"])
    recipe = TaskRecipe("token", data="hub:me/names")
    data = open_task(recipe, "train", ["ha", "yo"])
    assert data.task.labels == ("O", "B-PER")
    assert [(one.language, one.text, one.label) for one in data.examples] == [
        ("hau", ("Amina", "ta"), (1, 0)),
        ("yor", ("b",), (0,)),
    ]
    (problem,) = data.problems
    assert str(problem) == "hub:me/names:hau/train:2: no label in tags"
    with pytest.raises(ValueError, match="me/names has the configurations hau, yor; name one"):
        open_task(recipe, "train", ["ibo"])
    with pytest.raises(ValueError, match="hau of me/names is one configuration for ha"):
        open_task(TaskRecipe("token", data="hub:me/names:hau"), "train", ["ha", "yo"])


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'comet-distill\[hub\]'"):
        open_task(TaskRecipe(data="hub:me/tweets"), "train", ["hau"])
