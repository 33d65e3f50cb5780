"""What a run reads, by content: named in run.json and in checkpoints, and compared when the run is resumed.

Weights, configurations, tokenizers and other single files are hashed whole; text as `comet.corpus` does, labelled data
as `comet.tasks` does. Paths and times decide nothing: a run may be resumed on another machine.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comet.cache_files import fingerprint_of_files
from comet.corpus import Corpus
from comet.corpus.documents import content_hash
from comet.durable import checksum
from comet.pretrained import CONFIG, model_folder, said_plainly, weight_files

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
_OF_THE_SAVING = ("_name_or_path", "transformers_version")  # not of the model


class Input(NamedTuple):
    """Something that a run reads.

    Attributes:
        source: where it was, for messages.
        fingerprint: a hash of its content.
        times: a hash of the times of files whose content was sampled, empty where all of it was read.
    """

    source: str
    fingerprint: str
    times: str = ""


def model_inputs(
    role: str,
    name_or_folder: str,
    revision: str | None = None,
    *,
    flag: str = "--model",
    weights: bool = True,
    tokenizer: bool = True,
) -> dict[str, Input]:
    """Weights, configuration and tokenizer of a model, which is fetched where it is on the hub alone.

    Args:
        role: what it is called in messages, as in `teacher`.
        name_or_folder: a folder or hub id.
        revision: branch, tag or commit on the hub.
        flag: the option that named it, for messages.
        weights: whether its weights are read too.
        tokenizer: whether its tokenizer is.

    Raises:
        ValueError: it is not there.
    """
    folder = model_folder(name_or_folder, revision=revision, flag=flag, weights=weights)
    # the hub's cache names a folder by the commit
    source = (
        f"{name_or_folder}@{folder.name}" if folder.parent.name == "snapshots" else name_or_folder
    )
    found = {}
    if weights:
        with said_plainly(flag, name_or_folder):
            found[f"{role} weights"] = fingerprint_of_files(weight_files(folder, name_or_folder))
    found[f"{role} configuration"] = fingerprint_of_config(str(folder))
    if tokenizer:
        found[f"{role} tokenizer"] = _of_tokenizer(folder)
    return {name: Input(source, one) for name, one in found.items()}


def tokenizer_input(role: str, name_or_folder: str, *, flag: str) -> dict[str, Input]:
    """A tokenizer alone, likewise."""
    folder = model_folder(name_or_folder, flag=flag, needed="tokenizer_config.json", weights=False)
    return {role: Input(name_or_folder, _of_tokenizer(folder))}


def text_input(corpus: Corpus, paths: Sequence[str]) -> dict[str, Input]:
    """The text of a run."""
    return {"text": Input(", ".join(paths), corpus.fingerprint(), corpus.times())}


def data_input(split: str, data: str | None, fingerprint: str) -> dict[str, Input]:
    """A split of labelled data."""
    return {f"{split} split": Input(str(data), fingerprint)}


def file_input(role: str, path: Path) -> dict[str, Input]:
    """A file that is read whole."""
    return {role: Input(str(path), checksum(path))}


def saved_inputs(content: Any) -> dict[str, Input]:
    """What run.json or a checkpoint names; nothing where it is of a version that named none, or damaged."""
    named = content.items() if isinstance(content, Mapping) else ()
    return {name: Input(**one) for name, one in named if set(one) == set(Input._fields)}


def changed_inputs(before: Mapping[str, Input], now: Mapping[str, Input]) -> list[str]:
    """The names of those that are not what they were; what is named on one side alone is not compared."""
    return [
        name
        for name, one in now.items()
        if name in before and before[name].fingerprint != one.fingerprint
    ]


def fingerprint_of_config(name_or_folder: str, revision: str | None = None) -> str:
    """A SHA-256 of what a model's configuration says, but for where and by which version it was saved."""
    folder = model_folder(name_or_folder, revision=revision, weights=False)
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    own = {name: value for name, value in content.items() if name not in _OF_THE_SAVING}
    return content_hash(json.dumps(own, sort_keys=True))


def _of_tokenizer(folder: Path) -> str:
    return fingerprint_of_files({file for one in _TOKENIZER_FILES for file in folder.glob(one)})
