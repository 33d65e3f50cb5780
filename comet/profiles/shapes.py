"""Models that are nothing but a shape, with random weights: time and memory do not depend on what was learnt.

    shape:paper-teacher                 AfroXLMR-large, as a classifier of three classes
    shape:paper-student                 its student in the paper
    shape:6x256,8,1024,250002           layers x hidden size, heads, intermediate size, vocabulary
    shape:paper-student:masked-lm       with the masked-language-model head instead; or :encoder, with no head

All are XLM-RoBERTa with 514 positions.
"""

import re
from dataclasses import dataclass

from transformers import XLMRobertaConfig

PREFIX = "shape:"
_POSITIONS = 514
_HEADS = {
    "classifier": "XLMRobertaForSequenceClassification",
    "masked-lm": "XLMRobertaForMaskedLM",
    "encoder": "XLMRobertaModel",
}
_SIZES = re.compile(r"(\d+)x(\d+),(\d+),(\d+),(\d+)")


@dataclass(frozen=True)
class Published:
    """What AfroXLMR-Comet (arXiv 2502.18020) says of a model, in its own units.

    Attributes:
        parameters: as "69 M".
        size: on disk, as "263 MB".
        milliseconds: of one sentence, on hardware that is not stated.
    """

    parameters: str
    size: str
    milliseconds: float


@dataclass(frozen=True)
class _Named:
    sizes: str
    published: Published


PUBLISHED_IN = "AfroXLMR-Comet, arXiv 2502.18020; its latency is of hardware that is not stated"
_NAMED = {
    "paper-teacher": _Named("24x1024,16,4096,250002", Published("560 M", "2.1 GB", 293.9)),
    "paper-student": _Named("6x256,8,1024,250002", Published("69 M", "263 MB", 14.0)),
}


def shape_config(name: str, *, flag: str) -> tuple[XLMRobertaConfig, Published | None]:
    """The configuration of a shape, and what was published of it.

    Args:
        name: as above.
        flag: the option that named it, for messages.

    Raises:
        ValueError: it is no shape.
    """
    shape, _, head = name.removeprefix(PREFIX).partition(":")
    head = head or "classifier"
    named = _NAMED.get(shape)
    found = _SIZES.fullmatch(named.sizes if named else shape)
    if found is None or head not in _HEADS:
        raise ValueError(
            f"{flag}: got {name}, expected shape:LAYERSxHIDDEN,HEADS,INTERMEDIATE,VOCABULARY or one of "
            f"{', '.join(PREFIX + known for known in _NAMED)}, maybe with :masked-lm or :encoder behind it"
        )
    layers, hidden, heads, intermediate, vocabulary = map(int, found.groups())
    if min(layers, hidden, heads, intermediate) < 1 or vocabulary < 8 or hidden % heads:
        raise ValueError(
            f"{flag}: got {name}, expected sizes above 0, a hidden size that the heads divide and 8 or more entries"
        )
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=_POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=3,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=[_HEADS[head]],
        dtype="float32",
    )
    # the head of what was published is the classifier's
    return config, named.published if named and head == "classifier" else None
