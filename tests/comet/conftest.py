"""Tiny models and text, made once."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from comet.tokenizers import train_tokenizer
from comet.toy import LANGUAGES, toy_sentences

SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
CONFIGURATIONS = {
    "xlm-r": (XLMRobertaConfig, {**SPECIAL, "type_vocab_size": 1}),
    "bert": (BertConfig, {"pad_token_id": 1}),
    "electra": (ElectraConfig, {"pad_token_id": 1, "embedding_size": 16}),
    "modernbert": (ModernBertConfig, {**SPECIAL, "cls_token_id": 0, "sep_token_id": 2}),
}


def tiny_model(architecture: str, vocabulary_size: int = 120, **sizes: int) -> PreTrainedModel:
    """A model with random weights large enough that its attention is not flat."""
    kind, special = CONFIGURATIONS[architecture]
    shape = {
        "vocab_size": vocabulary_size,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
        **sizes,
    }
    return AutoModelForMaskedLM.from_config(kind(**shape, **special)).eval()


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


TINY_RUN = [
    "--student.layers", "2",
    "--student.hidden_size", "16",
    "--student.heads", "2",
    "--student.intermediate_size", "24",
    "--corpus.max_length", "24",
    "--corpus.held_out", "8",
    "--optimisation.warmup_steps", "1",
    "--batch-size", "8",
    "--run.log_every", "2",
    "--run.checkpoint_every", "3",
]  # fmt: skip
