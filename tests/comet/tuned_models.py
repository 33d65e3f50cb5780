"""Tiny models with a task's head and random weights, saved as fine-tuning saves them."""

from pathlib import Path

import torch
from tiny import CONFIGURATIONS
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from comet.task_model import ModelCard, save_tuned

SENTIMENT = ("negative", "neutral", "positive")
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def save_tiny(
    folder: Path,
    tokenizer,
    kind="sequence",
    *,
    seed=0,
    dev=0.5,
    max_length=16,
    architecture="xlm-r",
):
    """Save a model whose answers differ from text to text; returns it."""
    labels = SENTIMENT if kind == "sequence" else NAMES
    configuration, special = CONFIGURATIONS[architecture]
    config = configuration(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        initializer_range=0.3,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **special,
    )
    torch.manual_seed(seed)
    head = {
        "sequence": AutoModelForSequenceClassification,
        "token": AutoModelForTokenClassification,
    }
    model = head[kind].from_config(config).eval()
    size = {"parameters": 1, "encoder_parameters": 1, "bytes": 4}
    card = ModelCard("t", kind, list(labels), ["hau"], max_length, seed, dev, 1, size)
    save_tuned(model, tokenizer, card, folder)
    return model
