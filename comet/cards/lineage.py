"""What a model was made from, and the licence that it inherits, as its base's card says in a folder or on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub import ModelCard as HubCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

README = "README.md"
UNKNOWN = "unknown"
FROM_SCRATCH = "trained-from-scratch"  # a tag of models that have no base, so no licence to inherit
LICENCE_KEYS = ("license", "license_name", "license_link")
_SECONDS = 10.0
_ROLES = {"model", "student", "finetune", "distill", "adapt"}  # of folders, within a run


@dataclass(frozen=True)
class Base:
    """The teacher of a student, or the model that was trained further.

    Attributes:
        name: a hub id, or the last part of its folder that says something.
        hub_ids: what the hub knows it by, or what it was made from itself.
        licence: license, license_name and license_link of its card, those that there are.
        is_from_scratch: whether its card says that it was trained from random weights.
        asked: whether its card could be read.
    """

    name: str
    hub_ids: list[str]
    licence: dict[str, str]
    is_from_scratch: bool
    asked: bool


def base_of(name_or_folder: str, revision: str | None = None, *, online: bool) -> Base:
    """What the card of a model says that others inherit.

    Args:
        name_or_folder: a folder, or a hub id.
        revision: on the hub.
        online: ask the hub; otherwise nothing is known of what lies there.
    """
    folder = Path(name_or_folder).expanduser()
    on_hub = not folder.is_dir() and is_hub_id(name_or_folder)
    data = None
    if folder.is_dir():
        data = metadata(folder)
    elif on_hub and online:
        data = _asked(name_or_folder, revision)
    found = data or ModelCardData()
    theirs = [found.base_model] if isinstance(found.base_model, str) else found.base_model
    licence = {name: str(found.get(name)) for name in LICENCE_KEYS if found.get(name)}
    return Base(
        name=name_or_folder if on_hub else plain_name(name_or_folder),
        hub_ids=[name_or_folder] if on_hub else list(theirs or []),
        licence=licence if licence.get("license", UNKNOWN) != UNKNOWN else {},
        is_from_scratch=FROM_SCRATCH in (found.tags or []),
        asked=data is not None,
    )


def metadata(folder: Path) -> ModelCardData | None:
    """The metadata of a folder's card; None where it has none that can be read."""
    try:
        text = (folder / README).read_text("utf-8")
        if not text.startswith("---"):
            return None
        return cast(ModelCardData, HubCard(text, ignore_metadata_errors=True).data)
    except Exception:  # whatever a stranger's YAML does to the library
        return None


def is_hub_id(name: str) -> bool:
    """Whether the hub could know a model by this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def plain_name(path: str | Path) -> str:
    """The last part of a path that says something, in place of `runs/NAME/seed-0/model` its NAME."""
    parts = [part for part in Path(path).expanduser().parts if part not in ("/", ".", "..")]
    telling = [part for part in parts if part not in _ROLES and not part.startswith("seed-")]
    return (telling or parts or ["model"])[-1]


def _asked(name: str, revision: str | None) -> ModelCardData | None:
    try:
        return HfApi().model_info(name, revision=revision, timeout=_SECONDS).card_data
    except (
        Exception
    ):  # no network, no such model, no token: the card then says that it is not known
        return None
