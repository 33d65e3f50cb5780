"""The one place where configurations, weights and tokenizers are read from a folder or the hub.

They may come from strangers (SECURITY.md). A config.json chooses sizes, never code: no modelling file of a repository,
no kernel of the hub, no pickle, no file outside of the model's folder. Its keys that change what a call returns are
overridden, so that a model answers the same way however it was saved.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from comet.holdings import Wanted, instead
from comet.names import path_component
from comet.offline import is_not_here, offline_remedy, offline_where_unreachable, unreachable

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

# Keys of config.json that say how a call answers or runs, with what they are overridden by.
_OVERRIDDEN = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "torchscript": False,
    "use_cache": False,
    "gradient_checkpointing": False,
    "chunk_size_feed_forward": 0,
    "problem_type": None,
}
# Keys that name code or the machine it ran on; so do all that begin with an underscore.
_DROPPED = {
    "attn_implementation",
    "experts_implementation",
    "auto_map",
    "name_or_path",
}
# Keys without which the weights are not what they were trained as.
_REFUSED = {
    "is_decoder": "it reads each token without those that follow; give an encoder",
    "quantization_config": "quantised weights are not supported; give the model before it was quantised",
    "transformers_weights": f"only weights in {WEIGHTS} are read; rename the file and remove the key",
    "fusion_config": "fused modules are not supported; remove the key",
}
_FEWEST_ENTRIES = 16  # of a tokenizer whose file was read: more than special tokens
_POSITIONS_BY_TYPE = ("esm", "evolla")  # model types that still read position_embedding_type


def load_config(
    name_or_folder: str, *, revision: str | None = None, flag: str = "--model", **values: Any
) -> PreTrainedConfig:
    """Load a model's configuration.

    Args:
        name_or_folder: a hub id, or a folder written by `save_pretrained`.
        revision: branch, tag or commit on the hub.
        flag: the option that named the model, for messages.
        values: that replace those of config.json.

    Raises:
        ValueError: it is not there, is of an unknown type, or asks for what is refused here.
    """
    folder = model_folder(name_or_folder, revision=revision, flag=flag, weights=False)
    with said_plainly(flag, name_or_folder):
        settings = {**read_settings(folder), **values}
        kind = settings.pop("model_type")
        for replaced in ("torch_dtype", *(["num_labels"] if "id2label" in values else [])):
            settings.pop(replaced, None)
        settings |= {"dtype": torch.float32, "name_or_path": name_or_folder}
        return cast(PreTrainedConfig, AutoConfig.for_model(kind, **settings))


def require_encoder(config: PreTrainedConfig, name: str, *, flag: str) -> None:
    """Refuse a model that has a decoder too.

    Raises:
        ValueError: it has.
    """
    if config.is_encoder_decoder:
        raise ValueError(
            f"{flag}: {name} is of type {config.model_type}, an encoder with a decoder; give an encoder alone"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What config.json says of a model, without what it says of code, machines and how a call answers.

    Raises:
        ValueError: it is damaged, of an unknown model type, or asks for what is refused here.
    """
    settings, _ = PreTrainedConfig.get_config_dict(str(folder))
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = " by code of its own (auto_map), which is never run" if "auto_map" in settings else ""
        raise ValueError(f"{CONFIG}: transformers does not know model_type {kind!r}{own}")
    for key, advice in _REFUSED.items():
        if settings.get(key):
            raise ValueError(f"{CONFIG}: {key} is set: {advice}")
    positions = settings.get("position_embedding_type", "absolute")
    if positions != "absolute" and kind not in _POSITIONS_BY_TYPE:
        raise ValueError(
            f"{CONFIG}: position_embedding_type {positions} is not supported by transformers for {kind} models"
        )
    for key in settings:
        if callable(getattr(CONFIG_MAPPING[kind], key, None)):
            raise ValueError(f"{CONFIG}: {key} is no setting; remove the key")
    overridden = {key: value for key, value in _OVERRIDDEN.items() if key in settings}
    return _without_code(settings) | overridden


def _without_code(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _DROPPED and not key.startswith("_")
    }


def load_model(
    kind: Any,
    name_or_folder: str,
    *,
    config: PreTrainedConfig | None = None,
    revision: str | None = None,
    flag: str = "--model",
    ignore_mismatched_sizes: bool = False,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model in float32 and evaluation mode, on transformers' own attention.

    Args:
        kind: an Auto class of transformers, or the model's own.
        name_or_folder: a hub id, or a folder written by `save_pretrained`.
        config: that replaces the saved one.
        revision: branch, tag or commit on the hub.
        flag: the option that named the model, for messages.
        ignore_mismatched_sizes: let parameters of another shape start anew.

    Returns:
        The model, and what transformers reports of keys that are missing, unexpected or of another shape.

    Raises:
        ValueError: it cannot be loaded, or a weight is not a finite number.
    """
    config = config or load_config(name_or_folder, revision=revision, flag=flag)
    folder = model_folder(name_or_folder, revision=revision, flag=flag)
    with said_plainly(flag, name_or_folder):
        weight_files(folder, name_or_folder)
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        _require_finite_model(model)
    model.config.name_or_path = name_or_folder
    return cast(PreTrainedModel, model), report


def random_model(kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights in float32.

    Args:
        kind: an Auto class of transformers.
        config: of `load_config`, or made here.
    """
    return cast(
        PreTrainedModel, kind.from_config(config, dtype=torch.float32, attn_implementation=None)
    )


def saved_class(
    config: PreTrainedConfig, name: str, folder: Path | None = None, *, flag: str = "--model"
) -> type[PreTrainedModel]:
    """The class that a model was saved as; where its configuration names none of its own, the one that its weights fit.

    Args:
        config: of the model.
        name: of the model, for messages.
        folder: that its weights are in; None where there are none.
        flag: the option that named it, for messages.

    Raises:
        ValueError: transformers has no such class.
    """
    named = None if not config.architectures else str(config.architectures[0])
    found: Any = None if named is None else getattr(transformers, named, None)
    if named is not None and found is None:
        raise ValueError(f"{flag}: transformers has no {named}, which {name} was saved as")
    if (
        isinstance(found, type)
        and issubclass(found, PreTrainedModel)
        and isinstance(config, getattr(found, "config_class", None) or ())
    ):
        return cast(type[PreTrainedModel], found)
    return _fitting_class(config, set() if folder is None else set(weight_names(folder)))


def _fitting_class(config: PreTrainedConfig, names: set[str]) -> type[PreTrainedModel]:
    """The class whose parameters the names are, most of all; one without a head where there are none."""
    kinds = (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    found: dict[type[PreTrainedModel], int] = {}
    for kind in kinds:
        if type(config) in kind._model_mapping:
            with torch.device("meta"):
                model = random_model(kind, config)
            found[type(model)] = len(names ^ model.state_dict().keys()) if names else 0
    return min(found, key=lambda one: found[one])


def weight_names(folder: Path) -> list[str]:
    """Names of a saved model's tensors."""
    names: list[str] = []
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            names += file.keys()
    return names


def weight_files(folder: Path, name: str | None = None) -> list[Path]:
    """The safetensors files of a model, those that transformers reads.

    Args:
        folder: of the model.
        name: its hub id where the folder was fetched from there.

    Raises:
        ValueError: there is none, or the index names what is none of this folder.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder} holds an adapter ({ADAPTER}); merge it into its model first (peft: merge_and_unload)"
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(_conversion(folder, name or str(folder)))
    try:
        content = json.loads((folder / INDEX).read_text("utf-8"))
        named = sorted(set(content["weight_map"].values()), key=str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is damaged ({type(error).__name__}: {error})") from error
    for name in named:
        if not path_component(name, INDEX).endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name}; only *.safetensors are read")
        if not (folder / name).is_file():
            raise ValueError(f"{INDEX} names {name}, which is missing; fetch the model again")
    return [folder / name for name in named]


def _conversion(folder: Path, name: str) -> str:
    """Why a model without safetensors is refused, and how to get some."""
    local = Path(name).is_dir()
    if local and not any(folder.glob("*.bin")):
        return f"it holds no {WEIGHTS}; save the model with save_pretrained"
    target = name if local else f"{PurePath(name).name}-safetensors"
    lines = [
        "import transformers as t",
        f"t.AutoModelForMaskedLM.from_pretrained({name!r}, use_safetensors=False).save_pretrained({target!r})",
    ]
    if not local:
        lines.append(f"t.AutoTokenizer.from_pretrained({name!r}).save_pretrained({target!r})")
    return (
        f"it has no {WEIGHTS}; pickled weights can run code and are never read. If you trust its author, convert "
        f'it: python -c "{"; ".join(lines)}"{"" if local else f", and give {target}"}'
    )


def _require_finite_model(model: PreTrainedModel) -> None:
    kept = model.state_dict(keep_vars=True).keys()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in kept:
            require_finite(name, value)


def require_finite(name: str, value: torch.Tensor, source: str = "") -> None:
    """Refuse a tensor that holds NaN or infinity; a look at each number, without a copy.

    Args:
        name: of the tensor, for the message.
        value: of any dtype.
        source: what it is from, as the message begins.

    Raises:
        ValueError: it holds one.
    """
    if not value.is_floating_point() or value.is_meta or not value.numel():
        return
    lowest, highest = value.detach().aminmax()  # NaN where one is NaN
    if not (lowest.isfinite() and highest.isfinite()):
        count = int((~value.isfinite()).sum())
        raise ValueError(
            f"{source}{': ' if source else ''}{count:,} of the {value.numel():,} numbers of {name} are not finite "
            "(NaN or infinite); its training diverged or the file is damaged"
        )


def load_any_tokenizer(
    name_or_folder: str, *, revision: str | None = None, flag: str = "--model"
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer, whatever tokens it has.

    Raises:
        ValueError: there is none, or not a fast one.
    """
    local = Path(name_or_folder)
    bare = local.is_dir() and _sentencepiece_file(local) and (local / CONFIG).is_file()
    needed = CONFIG if bare else "tokenizer_config.json"
    folder = model_folder(
        name_or_folder, revision=revision, flag=flag, needed=needed, weights=False
    )
    with said_plainly(flag, name_or_folder, needed):
        unconverted = _sentencepiece_file(folder)
        if unconverted and not (is_sentencepiece_available() and is_protobuf_available()):
            raise ValueError(
                f"its tokenizer is only there as {unconverted}, and converting it takes two packages: "
                "pip install sentencepiece protobuf, and start the command again"
            )
        config = load_config(str(folder), flag=flag) if (folder / CONFIG).is_file() else None
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=False, **_own_files(folder)
            )
        except ValueError as error:
            if "backend tokenizer" not in str(error):
                raise
            raise ValueError("it has no fast tokenizer (tokenizer.json)") from error
        expected = tokenizer.vocab_files_names.get("vocab_file")
        if unconverted and unconverted != expected and len(tokenizer) < _FEWEST_ENTRIES:
            raise ValueError(
                f"its {unconverted} is not what a {type(tokenizer).__name__} reads; rename it to {expected} if "
                "that is its class, or correct tokenizer_class in tokenizer_config.json"
            )
    return cast(PreTrainedTokenizerFast, tokenizer)


def _sentencepiece_file(folder: Path) -> str | None:
    """The name of the tokenizer's file in a folder that has it as sentencepiece wrote it alone."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return None
    return next((path.name for path in sorted(folder.glob("*.model"))), None)


def _own_files(folder: Path) -> dict[str, str | None]:
    """Files that tokenizer_config.json names, in this folder instead of wherever it says."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found = {}
    for key, value in content.items():
        if key.endswith("_file") and isinstance(value, str):
            own = folder / PurePath(value).name
            found[key] = str(own) if own.is_file() else None
    return found


def model_folder(
    name_or_folder: str,
    *,
    revision: str | None = None,
    flag: str = "--teacher",
    needed: str = CONFIG,
    weights: bool = True,
) -> Path:
    """The folder of a model's files, fetched from the hub where it is a name there.

    Args:
        name_or_folder: a hub id or a folder.
        revision: branch, tag or commit on the hub.
        flag: the option that named the model, for messages.
        needed: a file that must be there.
        weights: fetch them too.

    Raises:
        ValueError: there is none.
    """
    with said_plainly(flag, name_or_folder, needed):
        if Path(name_or_folder).is_dir():
            return Path(name_or_folder)
        patterns = [
            "*.json",
            "*.model",
            "*.txt",
            *(["*.safetensors"] if weights else []),
        ]
        return Path(
            snapshot_download(
                name_or_folder, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
        )


@contextlib.contextmanager
def said_plainly(flag: str, name_or_folder: str, needed: str = CONFIG) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line that names the option."""
    path = Path(name_or_folder)
    if path.is_absolute() or name_or_folder.startswith((".", "~")) or path.exists():
        _require_folder(flag, path, needed)
    on_hub = not path.exists()
    try:
        with offline_where_unreachable() if on_hub else contextlib.nullcontext():
            yield
    except Exception as error:  # the hub, safetensors and torch each have exceptions of their own
        if str(error).startswith(f"{flag}: "):
            raise
        reason = str(error).strip().split("\n")[0]
        if on_hub and is_not_here(error) and (why := unreachable()):
            remedy = offline_remedy(name_or_folder)
            reason = f"it is neither a folder nor in the cache of the hub here, and {why}; {remedy}"
        raise ValueError(f"{flag}: cannot load {name_or_folder}: {reason}") from error


def _require_folder(flag: str, path: Path, needed: str) -> None:
    if not path.is_dir():
        raise ValueError(f"{flag}: {path} is not a folder")
    if not (path / needed).is_file():
        wanted: Wanted = "model" if needed == CONFIG else "tokenizer"
        hint = "; did you mean its subfolder?" if any(path.glob(f"*/{needed}")) else ""
        raise ValueError(
            f"{flag}: {path} holds no {wanted} ({needed}){instead(path, wanted) or hint}"
        )
