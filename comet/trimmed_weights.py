"""Weights and configuration of a model without some entries of its vocabulary.

Every tensor is copied as it is, those that have a row for each entry without the rows of what was dropped: the input
embeddings, the output embeddings where they are not the same, and the output's bias.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from comet.durable import write_json
from comet.pretrained import (
    CONFIG,
    WEIGHTS,
    load_config,
    load_model,
    read_settings,
    require_finite,
    said_plainly,
    saved_class,
    weight_files,
)


def write_trimmed(folder: Path, kept: np.ndarray, output: Path) -> dict[str, int]:
    """Write weights, those of the vocabulary without what was dropped, and the configuration that goes with them.

    Args:
        folder: of the model as it was saved.
        kept: `[N]` ids of the entries to keep, ascending.
        output: a folder that exists.

    Returns:
        How many parameters there were `before`, and are `after`.

    Raises:
        ValueError: its weights are no safetensors, or nothing in them has a row for every entry.
    """
    rows = load_config(str(folder)).vocab_size
    names = _vocabulary_tensors(folder, rows)
    index = torch.from_numpy(kept)
    tensors: dict[str, Tensor] = {}
    before = 0
    with said_plainly("--model", str(folder)):
        files = weight_files(folder)
    for path in files:
        with safe_open(path, framework="pt") as file:
            held = file.keys()
            for name in held:
                tensor = file.get_tensor(name)
                require_finite(name, tensor, f"--model: {folder}")
                before += tensor.numel()
                tensors[name] = tensor[index] if name in names else tensor
    if not names & tensors.keys():
        raise ValueError(f"--model: found no embeddings of {rows:,} entries in {folder}")
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    content = read_settings(folder)
    content["vocab_size"] = len(kept)
    new = {int(old): number for number, old in enumerate(kept)}
    for key, value in content.items():
        if key.endswith("_token_id") and value is not None:
            content[key] = (
                [new[one] for one in value if one in new]
                if isinstance(value, list)
                else new.get(value)
            )
    write_json(output / CONFIG, content)
    return {"before": before, "after": sum(one.numel() for one in tensors.values())}


def _vocabulary_tensors(folder: Path, rows: int) -> set[str]:
    """Names of what has a row for every entry: input and output embeddings, and the output's bias."""
    config = load_config(str(folder))
    with torch.device("meta"):
        model = saved_class(config, str(folder), folder)(config)
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [module.weight for module in embeddings if module is not None]
    return {
        name
        for name, value in model.state_dict(keep_vars=True).items()
        if any(value is weight for weight in weights)
        or (value.shape == (rows,) and ".layer" not in name)
    }


def load_as_saved(folder: Path) -> PreTrainedModel:
    """Load a model with the head it was saved with, in float32 and evaluation mode.

    Raises:
        ValueError: it cannot be loaded, in one line.
    """
    config = load_config(str(folder))
    model, _ = load_model(saved_class(config, str(folder), folder), str(folder), config=config)
    return model
