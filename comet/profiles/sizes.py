"""How large a model is: parameters by part, tied ones once, and bytes of its files."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from comet.profiles.models import Model
from comet.students import count_parameters

_POSITIONS = ("position", "rel_embeddings")  # the latter is DeBERTa's
_WEIGHTS = {
    "torch": ("*.safetensors",),
    "onnxruntime": ("*.onnx", "*.onnx.data", "*.onnx_data"),
}
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class Parameters:
    """How many parameters the parts of a model have, tied ones counted once, where they are read first.

    Attributes:
        embeddings: of pieces and token types, with what normalises or widens them.
        position_embeddings: learnt ones.
        encoder_layers: of all layers together.
        head: pooler and head.
        total: all.
    """

    embeddings: int
    position_embeddings: int
    encoder_layers: int
    head: int
    total: int


@dataclass(frozen=True)
class Disk:
    """Bytes of a model's files.

    Attributes:
        weights: of what is loaded.
        tokenizer: None for a shape.
        all: of everything in its folder, None for a shape.
        computed: whether nothing lies on a disk: 4 bytes a parameter.
    """

    weights: int
    tokenizer: int | None
    all: int | None
    computed: bool


def parameters_of(model: PreTrainedModel) -> Parameters:
    """Count the parameters of each part; weights need not be there (device "meta")."""
    base = model.base_model
    outside = "" if base is model else f"{model.base_model_prefix}."
    counts = dict.fromkeys(("embeddings", "position_embeddings", "encoder_layers", "head"), 0)
    named = model.named_parameters(remove_duplicate=False)
    parts: dict[nn.Parameter, str] = {}
    for name, parameter in sorted(named, key=lambda one: not one[0].startswith(outside)):
        parts.setdefault(parameter, _part(name, outside))  # tied: of the encoder, not the head
    for parameter, part in parts.items():
        counts[part] += parameter.numel()
    return Parameters(**counts, total=count_parameters(model))


def _part(name: str, base: str) -> str:
    if not name.startswith(base):
        return "head"
    words = name.removeprefix(base).split(".")
    if "pooler" in words:
        return "head"
    if any(sign in word for sign in _POSITIONS for word in words if "embedding" in word):
        return "position_embeddings"
    return "embeddings" if words[0].startswith("embeddings") else "encoder_layers"


def disk_of(model: Model, parameters: int) -> Disk:
    """Bytes of a model's files; of a shape, what its weights would take in float32."""
    if model.folder is None:
        return Disk(4 * parameters, None, None, computed=True)
    return Disk(
        weights=_bytes(model.folder, _WEIGHTS[model.runtime]),
        tokenizer=_bytes(model.folder, _TOKENIZER),
        all=_bytes(model.folder, ("**/*",)),
        computed=False,
    )


def _bytes(folder: Path, patterns: tuple[str, ...]) -> int:
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)
