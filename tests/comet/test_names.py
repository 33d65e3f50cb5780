"""Names from data, models and flags as paths; and folders that no run made, which nothing replaces or removes."""

import json
from pathlib import Path

import numpy as np
import pytest

from comet import card
from comet.checkpoints import save_checkpoint
from comet.corpus import open_corpus
from comet.durable import replace_folder, sealed
from comet.experiments.grid import read_grid
from comet.names import path_component, path_inside
from comet.students import load_tokenizer, save_tokenizer
from comet.task_model import read_card
from comet.tasks import TaskRecipe, open_task
from comet.teacher_cache import FORMAT, read_index
from comet.trimmed_weights import write_trimmed
from comet.tuned_runs import member_folder

BAD = [
    "", " ", ".", "..", "/", "/etc", "../x", "a/b", "a\\b", "C:", "C:x", ".hidden", "a\0", "a\n", "*",
    "con", "NUL.txt", "x ", "x.", "h" * 201, "\ud800", None, 3,
]  # fmt: skip
GOOD = [
    "hau",
    "pt_br",
    "hau_Latn",
    "zh-Hant",
    "Hausa (Latin)",
    "हिन्दी",
    "a" * 200,
    "console",
    "a..b",
]


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_cannot_name_one_folder_everywhere_is_refused(name, tmp_path):
    with pytest.raises(
        ValueError, match=r"^language: got .*cannot be the name of a file or folder"
    ):
        path_component(name, "language")
    if name is not None:
        with pytest.raises(ValueError, match="language"):
            member_folder(tmp_path, 0, name)


@pytest.mark.parametrize("name", GOOD)
def test_what_names_one_folder_is_returned(name, tmp_path):
    assert path_component(name, "language") == name
    assert member_folder(tmp_path, 0, name).parent == tmp_path / "seed-0"


def test_a_path_of_several_parts_stays_inside(tmp_path):
    assert path_inside(tmp_path, "a/b.json", "file") == tmp_path / "a" / "b.json"
    for name in ("a/../../b", "/a", "a//b", None, 1):
        with pytest.raises(ValueError, match=r"^file: got"):
            path_inside(tmp_path, name, "file")


def test_a_row_whose_language_leads_elsewhere_is_left_out_or_ends_a_strict_run(tmp_path):
    rows = [
        {"text": f"{language} {label}", "label": label, "lang": language}
        for language in ("hau", str(tmp_path / "victim"), "../../../x", "..")
        for label in ("no", "yes")
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = TaskRecipe(task="sequence", data=str(tmp_path), language_column="lang")
    found = open_task(recipe, "train")
    assert found.languages == ("hau",)
    assert len(found.problems) == 6
    assert "language in lang: got '../../../x'" in found.problems[2].reason
    strict = TaskRecipe(
        task="sequence",
        data=str(tmp_path),
        language_column="lang",
        labels=["no", "yes"],
        strict=True,
    )
    with pytest.raises(ValueError, match=r"train\.jsonl:3: language in lang"):
        open_task(strict, "train")


def test_languages_of_flags_and_addresses_lead_nowhere_else(tmp_path):
    with pytest.raises(ValueError, match=r"task\.languages: got '\.\./x'"):
        open_task(TaskRecipe(task="sequence", data=str(tmp_path), languages=["../x"]), "train")
    with pytest.raises(ValueError, match=r"corpus: madlad400:\.\./x: got"):
        open_corpus(["madlad400:../x"], temperature=1.0, seed=0, held_out_per_language=1)


def test_files_that_an_index_names_are_next_to_it(tmp_path, teacher_folder):
    for index in (
        {"files": {"../head.safetensors": {}}, "shards": []},
        {"files": {}, "shards": [{"name": "/etc/passwd"}]},
    ):
        (tmp_path / "index.json").write_text(json.dumps(sealed({"format": FORMAT, **index})))
        with pytest.raises(ValueError, match=r"--teacher-cache: .*index\.json: got"):
            read_index(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((teacher_folder / name).read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../model.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"--model: .*model\.safetensors\.index\.json: got"):
        write_trimmed(tmp_path, np.array([0]), tmp_path)


def test_seed_and_languages_of_a_models_card_are_checked(tmp_path):
    content = {
        "task": "t", "kind": "sequence", "labels": ["a", "b"], "languages": ["hau"], "max_length": 8, "seed": 0,
        "dev": 0.5, "step": 1, "size": None,
    }  # fmt: skip
    for wrong in ({"seed": "0/../../x"}, {"languages": ["../x"]}):
        (tmp_path / "comet.json").write_text(json.dumps({**content, **wrong}))
        with pytest.raises(ValueError, match=r"--model: cannot read .*comet\.json"):
            read_card(tmp_path)


def test_cells_with_names_that_no_folder_can_have_are_refused(tmp_path):
    file = tmp_path / "grid.yaml"
    for name in ("con", "x" * 300):
        file.write_text(f"teacher: t\ncells: {{{name}: {{}}}}\n")
        with pytest.raises(ValueError, match="cannot be the name of a file or folder"):
            read_grid(str(file), {})


def test_templates_of_a_tokenizer_write_no_files(teacher_folder, tmp_path):
    source = tmp_path / "source"
    load_tokenizer(str(teacher_folder)).save_pretrained(source)
    file = source / "tokenizer_config.json"
    templates = [{"name": "default", "template": "x"}, {"name": "../../escaped", "template": "x"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": templates}))
    (source / "config.json").write_bytes((teacher_folder / "config.json").read_bytes())
    save_tokenizer(load_tokenizer(str(source)), tmp_path / "saved" / "tokenizer")
    assert not list(tmp_path.rglob("*.jinja"))


def written(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_a_run_replaces_what_it_wrote_and_nothing_else(tmp_path):
    run = written(tmp_path / "run", "recipe.yaml")
    final = written(
        run / "seed-0" / "hau" / "model",
        *("config.json", "model-00001-of-00002.safetensors", ".README.md.4711.partial"),
    )
    replace_folder(written(run / "partial", "config.json", "model.safetensors"), final)
    assert sorted(path.name for path in final.iterdir()) == ["config.json", "model.safetensors"]
    (final / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"it holds notes\.txt, which Comet did not write; move it"
    ):
        replace_folder(written(run / "partial", "config.json"), final)
    assert (final / "notes.txt").read_text() == "mine"


def test_a_model_that_no_run_is_around_and_links_stay(tmp_path):
    theirs = written(tmp_path / "theirs" / "model", "config.json", "model.safetensors")
    with pytest.raises(ValueError, match="no run of Comet's is around it"):
        replace_folder(written(tmp_path / "partial", "config.json"), theirs)
    assert (theirs / "model.safetensors").exists()
    link = written(tmp_path / "run", "recipe.yaml") / "model"
    link.symlink_to(theirs)
    with pytest.raises(ValueError, match="no folder that Comet wrote"):
        replace_folder(tmp_path / "partial", link)
    assert link.is_symlink()


def test_a_checkpoint_with_somebodys_notes_is_not_rotated_away(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {}, {}, keep=1)
        (tmp_path / f"step-{step}" / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, 4, {}, {}, keep=1)
    save_checkpoint(tmp_path, 5, {}, {}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-1",
        "step-2",
        "step-3",
        "step-5",
    ]


def test_a_card_that_its_author_edited_outlives_the_model_saved_again(tmp_path):
    home, partial = written(tmp_path / "home"), written(tmp_path / "partial")
    (home / "README.md").write_text("# My words\n")
    card.describing(home)(partial)
    assert (partial / "README.md").read_text() == "# My words\n"
