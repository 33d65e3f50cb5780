"""What can be measured: a model in a folder, in a run of `comet.finetune`, exported to ONNX, or a shape alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from comet.fine_tuned import find_model
from comet.onnx_encoder import GRAPH, is_exported
from comet.pretrained import load_config, saved_class
from comet.profiles.shapes import PREFIX, Published, shape_config
from comet.tap import usable_positions
from comet.tfidf import is_tfidf

_STUDENT = "student"  # of a run of comet.distill


@dataclass(frozen=True)
class Model:
    """A model that can be measured, not loaded.

    Attributes:
        name: as the user gave it.
        found: its folder or shape, by which another process finds it again.
        folder: that its files lie in, None for a shape.
        config: of transformers.
        kind: its class in transformers.
        published: what a paper says of it, or None.
        choice: which of several seeds it is and why, None where there was no choice.
    """

    name: str
    found: str
    folder: Path | None
    config: PreTrainedConfig
    kind: type[PreTrainedModel]
    published: Published | None
    choice: str | None

    @property
    def runtime(self) -> str:
        """What runs it: "torch" or "onnxruntime"."""
        return "torch" if self.folder is None or not is_exported(self.folder) else "onnxruntime"

    @property
    def timed(self) -> str:
        """What of it is timed. Nobody asks a deployed model for logits over its vocabulary at every token."""
        if self.runtime == "torch" and self.is_masked_lm:
            return "the encoder without its masked-language-model head"
        return f"all of {self.kind.__name__}"

    @property
    def is_masked_lm(self) -> bool:
        """Whether its head is that of pre-training."""
        return self.kind.__name__.endswith(("ForMaskedLM", "ForPreTraining"))

    def skeleton(self) -> PreTrainedModel:
        """The model without weights, tied ones tied."""
        with torch.device("meta"):
            return self.kind(self.config)

    def longest(self) -> int:
        """The most tokens that it reads at once."""
        return usable_positions(self.skeleton())


def find(given: str, language: str | None = None, *, flag: str = "--model") -> Model:
    """Find a model by what the user gave: a folder, a run's folder, or a shape.

    Args:
        given: as `comet.predict` takes it, or `shape:...`.
        language: of the texts, where a run has a model for each.
        flag: the option, for messages.

    Raises:
        ValueError: there is none.
    """
    if given.startswith(PREFIX):
        config, published = shape_config(given, flag=flag)
        return Model(
            given, given, None, config, saved_class(config, given, flag=flag), published, None
        )
    folder = Path(given).expanduser()
    if (folder / _STUDENT / "config.json").is_file():
        folder = folder / _STUDENT
    folder, choice = find_model(folder, language, flag=flag)
    if is_tfidf(folder):
        raise ValueError(f"{flag}: {folder} holds a TF-IDF model; only encoders are measured")
    config = load_config(str(folder), flag=flag)
    has_weights = is_exported(folder) or any(folder.glob("*.safetensors"))
    if not has_weights:
        raise ValueError(f"{flag}: {folder} holds neither {GRAPH} nor weights in safetensors")
    return Model(
        given, str(folder), folder, config, saved_class(config, given, flag=flag), None, choice
    )
