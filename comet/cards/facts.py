"""What a model's card is written from: the files of its run, and its own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from transformers import AutoModel, AutoModelForMaskedLM

from comet.cards.lineage import Base, base_of, is_hub_id, metadata, plain_name
from comet.fine_tuned import CARD
from comet.finetune_recipe import TFIDF, FinetuneRecipe
from comet.pretrained import load_config, random_model
from comet.recipe import AdaptRecipe, DistillRecipe
from comet.runs import METRICS, RECIPE, RECORD
from comet.task_model import HEADS, ModelCard, read_card, sizes

Made = Literal["distilled", "adapted", "tuned"]
_RECIPES = {"distilled": DistillRecipe, "adapted": AdaptRecipe, "tuned": FinetuneRecipe}
ENCODER = "feature-extraction"
_KINDS = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
_CLASSES = {
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": HEADS["sequence"],
    "token-classification": HEADS["token"],
    ENCODER: AutoModel,
}
WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data")


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes:
        name: what the card is headed with.
        made: how; None where no run lies around it.
        written: recipe.yaml of the run, folders by their last part.
        recipe: the same, with today's defaults for what an older one does not say.
        record: run.json of the run, and over it that of this model where it has one of its own.
        tokens: that were trained on.
        held_out: by language, a student's agreement with its teacher, or the masked loss; empty where there is none.
        scores: scores-SPLIT.json, test first.
        tuned: comet.json; None where it has no head for a task.
        base: what it was made from; None for nothing, or nothing that is known.
        config: config.json; empty for TF-IDF.
        size: parameters and encoder_parameters; empty where they are not known.
        disk: bytes of the weights.
        previous: metadata of the card that lies there.
    """

    name: str
    made: Made | None
    written: Mapping[str, Any]
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    tokens: int | None
    held_out: Mapping[str, Any]
    scores: list[dict[str, Any]]
    tuned: ModelCard | None
    base: Base | None
    config: Mapping[str, Any]
    size: Mapping[str, int]
    disk: int
    previous: Mapping[str, Any]

    @property
    def languages(self) -> list[str]:
        """What it was trained on: three-letter codes."""
        if self.tuned is not None:
            return list(self.tuned.languages)
        return [name for name in self.held_out if name != "all"]

    @property
    def is_tfidf(self) -> bool:
        """Whether it is the baseline of character n-grams."""
        return self.tuned is not None and not self.config

    @property
    def is_from_scratch(self) -> bool:
        """Whether it started from random weights and learnt from no model but one that did."""
        if self.made == "tuned" and self.recipe["model"]["initial"] == "random":
            return True
        if self.base is None:
            return self.made == "adapted" or self.is_tfidf
        return self.base.is_from_scratch and self.start is None

    @property
    def start(self) -> str | None:
        """The model, other than its teacher, that a student started from."""
        return self.recipe["student"]["model"] if self.made == "distilled" else None

    @property
    def kind(self) -> str:
        """What the hub calls what it does."""
        if self.tuned is not None:
            return "token-classification" if self.tuned.kind == "token" else "text-classification"
        saved_as = (self.config.get("architectures") or [""])[0]
        return next((kind for head, kind in _KINDS.items() if saved_as.endswith(head)), ENCODER)


def gather(
    folder: Path, home: Path | None = None, *, origin: str | None = None, online: bool = False
) -> Facts:
    """Read what there is.

    Args:
        folder: the model's files.
        home: where they will lie in the end, from which its run follows; None for where they are.
        origin: folder or hub id of the model that it was made from, where no run tells.
        online: ask the hub for the licence of what lies there.

    Raises:
        ValueError: a file of the run cannot be read.
    """
    home = (home or folder).resolve()
    run, member = _run_of(home), home.parent
    written = _yaml(run / RECIPE) if run is not None else {}
    record = {**_json(run / RECORD), **_json(member / RECORD)} if run is not None else {}
    made = _made(written)
    recipe = _complete(made, written)
    tuned = read_card(folder) if (folder / CARD).is_file() else None
    found = _json((run or home) / "agreement.json").get("after") if made == "distilled" else None
    if made == "adapted" and run is not None:
        found = _json(run / "held_out.json").get("loss")
    scores = [] if run is None else [_json(path) for path in run.glob("scores-*.json")]
    config = _json(folder / "config.json")
    old = metadata(home)
    previous = {} if old is None else old.to_dict()
    base = _base(made, recipe, record, online=online)
    if made is None:
        name = origin or _first(previous.get("base_model"))
        base = None if name is None else base_of(name, online=online)
    facts = Facts(
        name=plain_name(run or origin or home),
        made=made,
        written=_without_folders(written),
        recipe=_without_folders(recipe),
        record=record,
        tokens=None if made is None else _tokens(member / METRICS),
        held_out=found or {},
        scores=sorted(scores, key=lambda one: one.get("split") != "test"),
        tuned=tuned,
        base=base,
        config=config,
        size={},
        disk=sum(path.stat().st_size for path in weight_files(folder)),
        previous=previous,
    )
    return replace(facts, size=_size(folder, facts)) if config else facts


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's folder that hold weights."""
    return sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)


def _run_of(home: Path) -> Path | None:
    """The run that a model is of: the folder above it, or above that of its seed; None where it lies alone."""
    if home.name not in ("student", "model"):
        return None
    above = list(home.parents)[:3]
    seeds = [place for place, folder in enumerate(above) if folder.name.startswith("seed-")]
    candidates = [*(above[place + 1 : place + 2] for place in seeds), above[:1]]
    found = [one[0] for one in candidates if one and (one[0] / RECIPE).is_file()]
    return found[0] if found else None


def _made(recipe: Mapping[str, Any]) -> Made | None:
    if "task" in recipe:
        return "tuned"
    if "warm_start" in recipe:
        return "adapted"
    return "distilled" if "student" in recipe else None


def _complete(made: Made | None, written: Mapping[str, Any]) -> dict[str, Any]:
    if made is None:
        return {}
    return {
        name: {**asdict(part()), **written.get(name, {})}
        for name, part in get_type_hints(_RECIPES[made]).items()
    }


def _base(
    made: Made | None, recipe: Mapping[str, Any], record: Mapping[str, Any], *, online: bool
) -> Base | None:
    """The teacher of a student; else what was trained further."""
    if made == "distilled":
        name, revision = (
            recipe["teacher"]["model"] or record.get("teacher"),
            recipe["teacher"]["revision"],
        )
    else:
        name, revision = recipe.get("model", {}).get("model"), None
    return None if name in (None, TFIDF) else base_of(name, revision, online=online)


def _first(names: str | list[str] | None) -> str | None:
    if isinstance(names, str):
        return names
    return names[0] if names else None


def _size(folder: Path, facts: Facts) -> Mapping[str, int]:
    if facts.tuned is not None and facts.tuned.size is not None:
        return facts.tuned.size
    try:
        config = load_config(str(folder))
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return sizes(random_model(_CLASSES[facts.kind], config))
    except Exception:  # an architecture that transformers does not build has no figures, but a card
        return {}


def _tokens(metrics: Path) -> int | None:
    try:
        last = metrics.read_text("utf-8").splitlines()[-1]
        return int(json.loads(last)["tokens"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is not there.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text("utf-8")))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _without_folders(value: Any) -> Any:
    """A recipe that says nothing of the machine: paths by their last part that says something."""
    if isinstance(value, Mapping):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if not isinstance(value, str) or "/" not in value or value.startswith("hub:"):
        return value
    is_path = Path(value).expanduser().exists() or not is_hub_id(value)
    return plain_name(value) if is_path else value
