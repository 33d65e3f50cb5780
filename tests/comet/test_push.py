"""A model and its card to the hub, which a small server stands in for."""

import socket

import huggingface_hub
import pytest
import torch
from hub_server import point_at
from hub_uploads import TOKEN, ModelHub
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tuned_models import save_tiny

from comet.card import carry, main
from comet.cards.lineage import base_of
from comet.cards.push import pushed_files
from comet.classifier import Classifier

NAME = "someone/small-sentiment"
TEXT = "Malami ya koya wa dalibai."


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with ModelHub(tmp_path / "hub", NAME) as server:
        point_at(server, monkeypatch)
        yield server


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A model, and things beside it that are nobody's business."""
    folder = tmp_path / "model"
    save_tiny(folder, tokenizer)
    (folder / "checkpoints/step-3").mkdir(parents=True)
    for name in (
        "checkpoints/step-3/model.safetensors",
        "optimizer.safetensors",
        ".hidden.json",
        "trim.json",
        "x.pt",
    ):
        (folder / name).write_bytes(b"nobody's business")
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def push(folder, *more, name=NAME):
    main([str(folder), "--push-to-hub", name, *more])


def refused(folder, *more, name=NAME):
    """The one line that it ends with; nothing here has changed."""
    before = contents(folder)
    with pytest.raises(ValueError, match="--push-to-hub") as error:
        push(folder, *more, name=name)
    assert contents(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_arrives_is_the_model_and_its_card(hub, folder, tmp_path, capsys):
    push(folder)
    here, there = contents(folder), contents(hub.folder)
    assert there.keys() == {
        "README.md", "comet.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {name for name, content in there.items() if here[name] != content} == {"README.md"}
    assert list(hub.large.values()) == [here["model.safetensors"]]
    assert [(one["organization"], one["name"]) for one in hub.created] == [
        ("someone", "small-sentiment")
    ]
    for name in there.keys() - {"model.safetensors"}:
        assert str(tmp_path).encode() not in there[name]
    assert hub.commits == ["main"]
    assert f"{hub.endpoint}/{NAME}" in capsys.readouterr().out
    card = there["README.md"].decode()
    assert f'snapshot_download("{NAME}")' in card
    assert f'model="{NAME}"' in card
    assert 'model="."' in here["README.md"].decode()


def test_what_was_pushed_loads_from_there(hub, folder, tmp_path):
    push(folder)
    cache = {"cache_dir": tmp_path / "cache"}
    ours = AutoModelForSequenceClassification.from_pretrained(folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(NAME, **cache)
    encoded = AutoTokenizer.from_pretrained(NAME, **cache)(TEXT, return_tensors="pt")
    assert torch.equal(ours(**encoded).logits, theirs(**encoded).logits)
    loaded = Classifier(snapshot_download(NAME, **cache))
    assert loaded.predict([TEXT]) == Classifier(folder).predict([TEXT])


def test_a_second_push_sends_what_changed_alone(hub, folder):
    push(folder)
    sent = len([one for one in hub.requests if one.startswith("PUT")])
    push(folder, "--license", "mit")
    assert len([one for one in hub.requests if one.startswith("PUT")]) == sent == 1
    assert b"license: mit" in (hub.folder / "README.md").read_bytes()


def test_a_branch_and_a_private_repository(hub, folder):
    hub.facts["private"] = True
    push(folder, "--private", "--revision", "trial")
    (created,) = hub.created
    assert created.get("visibility", created.get("private")) in (
        "private",
        True,
    )  # as of 2 and of 1
    assert (hub.branches, hub.commits) == (["trial"], ["trial"])


def test_nothing_private_goes_to_a_public_repository(hub, folder):
    assert "already and public" in refused(folder, "--private")
    assert hub.commits == []


def test_an_edited_card_is_pushed_as_it_is(hub, folder):
    main([str(folder)])
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## Limits\n\n- Mine."))
    before = card.read_bytes()
    push(folder)
    assert card.read_bytes() == before
    assert b"- Mine." in (hub.folder / "README.md").read_bytes()


@pytest.mark.parametrize("name", ["small", "a/b/c", "a b/c", "someone/-x", "someone/x.git", "/x"])
def test_a_name_that_is_none(hub, folder, name):
    assert "expected OWNER/NAME" in refused(folder, name=name)
    assert hub.requests == []


def test_no_token(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = refused(folder)
    assert "`hf auth login`" in said
    assert "HF_TOKEN" in said
    assert hub.requests == []


def test_a_wrong_token_and_one_that_may_not_write(hub, folder, monkeypatch):
    hub.forbidden = True
    said = refused(folder)
    assert f"may not write to {NAME} (403)" in said
    assert "HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not take the token (401)" in refused(folder)
    assert contents(hub.folder) == {}


def test_no_network(hub, folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} cannot be reached" in refused(folder)


def test_an_upload_that_is_refused_leaves_no_commit(hub, folder):
    hub.errors = [400]
    refused(folder)
    assert hub.commits == []


def test_options_of_a_push_without_one(folder):
    with pytest.raises(ValueError, match="give them with --push-to-hub"):
        main([str(folder), "--private"])


def test_the_hub_is_asked_for_a_licence_by_the_command_alone(hub, monkeypatch):
    hub.facts["cardData"] = {"license": "cc-by-4.0", "tags": ["x"]}
    assert base_of(NAME, online=False).licence == {}
    assert hub.requests == []
    found = base_of(NAME, online=True)
    assert (found.licence, found.hub_ids) == ({"license": "cc-by-4.0"}, [NAME])
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not base_of(NAME, online=True).asked


def test_a_licence_is_asked_for_where_a_card_names_what_it_was_made_from(
    hub, folder, teacher_folder
):
    carry(teacher_folder, folder, "Trimmed.", origin=NAME)
    assert "license: unknown" in (folder / "README.md").read_text()
    hub.facts["cardData"] = {"license": "mit"}
    main([str(folder)])
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert f"mit, inherited from the model that it was made from, `{NAME}`." in card


def test_onnx_files_go_with_their_data(tmp_path):
    for name in ("onnx/model.onnx", "onnx/model.onnx_data", "config.json", "export.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in pushed_files(tmp_path)] == [
        "config.json",
        "model.onnx",
        "model.onnx_data",
    ]
