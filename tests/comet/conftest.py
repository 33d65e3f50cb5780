"""Tiny models and text, made once."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_model
from tiny_tasks import write_sentiment
from transformers import PreTrainedTokenizerFast

from comet.tokenizers import train_tokenizer
from comet.toy import LANGUAGES, toy_sentences


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("COMET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _another_precision_each_time():
    """Accelerate keeps one precision per process, as long as nobody resets it."""
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [text for language in LANGUAGES for text in toy_sentences(language, 60)]
    return train_tokenizer(texts, 300, 64)


@pytest.fixture(scope="session")
def teacher_folder(tokenizer, tmp_path_factory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    tiny_model("xlm-r", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("hau", "swa"):
        (folder / language).mkdir()
        text = "\n".join(toy_sentences(language, 400))
        (folder / language / "text.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory) -> Path:
    """Labelled data of three languages, to be read alone."""
    return write_sentiment(tmp_path_factory.mktemp("sentiment"), ("hau", "swa", "yor"))
