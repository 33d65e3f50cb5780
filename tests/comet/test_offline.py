"""Without a network: one try, then the remedy; what is in the caches is read all the same."""

import socket
import time

import huggingface_hub
import pytest
from hub_server import HubServer, point_at

from comet import offline
from comet.corpus import open_corpus
from comet.pretrained import model_folder
from comet.students import load_tokenizer
from comet.tasks import TaskRecipe, open_task


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub that nobody serves, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return endpoint


@pytest.fixture(autouse=True)
def _hurry():
    """Every library here retries for 20 seconds and more if it is let."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < 15


def test_a_model_that_is_not_here(nowhere):
    said = rf"--model: cannot load a/b: it is neither a folder .*, and {nowhere} cannot be reached .*`hf download a/b`"
    with pytest.raises(ValueError, match=said):
        model_folder("a/b", flag="--model")
    with pytest.raises(ValueError, match=said):
        load_tokenizer("a/b", flag="--model")


def test_text_and_labelled_data_that_are_not_here(nowhere):
    with pytest.raises(
        ValueError, match=rf"{nowhere} cannot be reached .*; without the hub, give local"
    ):
        open_corpus(["madlad400:ha"], temperature=1.0, seed=0, held_out_per_language=1)
    pytest.importorskip("datasets")
    with pytest.raises(
        ValueError, match=rf"hub:a/b: it is not on this machine, and {nowhere} cannot be reached"
    ):
        open_task(TaskRecipe(task="sequence", data="hub:a/b"), "train")


def test_it_is_tried_once_and_nothing_stays_changed(nowhere, monkeypatch):
    tries = []
    monkeypatch.setattr(offline, "get_session", lambda: tries.append(1))
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be reached"):
            model_folder("a/b")
    assert len(tries) == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_offline_by_choice_is_said(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="and HF_HUB_OFFLINE is set; fetch it"):
        model_folder("nobody/has-this")


def test_what_was_fetched_before_is_read(teacher_folder, nowhere, monkeypatch, tmp_path):
    with monkeypatch.context() as online, HubServer(teacher_folder, "a/b", "models") as server:
        online.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
        point_at(server, online)
        before = model_folder("a/b")
    assert model_folder("a/b") == before
    assert len(load_tokenizer("a/b")) == len(load_tokenizer(str(teacher_folder)))
