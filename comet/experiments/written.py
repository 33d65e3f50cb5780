"""Grids as YAML: found by name, joined with the grid that they extend and with the command line, and made flat."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from comet.configuration import is_file, refuse_empty, refuse_unknown
from comet.finetune_recipe import FinetuneRecipe
from comet.recipe import AdaptRecipe, DistillRecipe
from comet.spellings import suggestion

GRIDS = Path(__file__).parent.parent / "grids"
RECIPES: dict[str, type] = {
    "adapt": AdaptRecipe,
    "distill": DistillRecipe,
    "mlm": AdaptRecipe,
    "finetune": FinetuneRecipe,
}
KEYS = (
    "title", "extends", "teacher", "adapt", "distill", "mlm", "finetune", "cache", "seeds", "evaluate", "axes",
    "cells", "published",
)  # fmt: skip
Content = dict[str, dict[str, Any]]
Settings = dict[str, Any]  # "part.field" → value


def slug(name: str) -> str:
    """A name as a folder: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")


def nested(settings: Mapping[str, Any]) -> Content:
    """`{"objective.alpha": 1}` as `{"objective": {"alpha": 1}}`."""
    found: Content = {}
    for key, value in settings.items():
        part, field = key.split(".", 1)
        found.setdefault(part, {})[field] = value
    return found


def require_text(content: Any, where: str) -> None:
    """Refuse empty text anywhere in a grid.

    Raises:
        ValueError: there is some; the message says under which key.
    """
    if isinstance(content, str):
        refuse_empty(content, where)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            require_text(value, f"{where}: {key}")
    elif isinstance(content, list):
        for value in content:
            require_text(value, where)


def flat(content: Any, where: str) -> dict[str, Any]:
    """Nested mappings, whose keys may be dotted themselves, as one of dotted keys.

    Raises:
        ValueError: it is no mapping.
    """
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: got {content!r}, expected keys with values")
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            for inner, one in flat(value, f"{where}.{key}").items():
                found[f"{key}.{inner}"] = one
        else:
            found[str(key)] = value
    return found


def path_of(name_or_file: str) -> Path:
    """The file of a grid.

    Raises:
        ValueError: there is none of this name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = GRIDS / f"{name_or_file}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in GRIDS.glob("*.yaml"))
        raise ValueError(
            f"no grid is called {name_or_file!r}{suggestion(name_or_file, known)}; "
            f"there are {', '.join(known)}, or give a .yaml file"
        )
    return path


def written_grid(
    name_or_file: str, seen: tuple[Path, ...] = (), *, shipped: bool = False
) -> dict[str, Any]:
    """The content of a grid over that of the grid it extends: stages field by field, other keys as a whole.

    With `shipped`, only what Comet says of stages: of a grid of one's own the named recipe alone.
    """
    path = path_of(name_or_file)
    if path in seen:
        raise ValueError(f"{path}: extends: it extends itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: got {content!r}, expected keys ({', '.join(KEYS)})")
    refuse_unknown({str(key).partition(".")[0]: None for key in content}, KEYS, str(path), "key")
    require_text(content, str(path))
    found: dict[str, Any] = {}
    for key, value in content.items():
        stage, _, rest = str(key).partition(".")
        if stage in RECIPES:
            fields = flat({rest: value} if rest else value, f"{path}: {key}")
            if shipped and path.parent != GRIDS:
                named = fields.get("recipe")
                fields = {} if named is None or is_file(str(named)) else {"recipe": named}
            found[stage] = {**found.get(stage, {}), **fields}
        else:
            found[key] = value
    base = found.pop("extends", None)
    if base is None:
        return found
    beside = path.parent / str(base)  # a file is named from where this one lies
    under = written_grid(
        str(beside) if is_file(str(beside)) else str(base), (*seen, path), shipped=shipped
    )
    for stage in RECIPES.keys() & under.keys() & found.keys():
        found[stage] = {**under[stage], **found[stage]}
    if "cells" in found or "axes" in found:
        under = {key: value for key, value in under.items() if key not in ("cells", "axes")}
    return {**under, **found}


def put(written: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of the command line: `seeds`, `evaluate.split` or `distill.objective.alpha`."""
    first, _, rest = key.partition(".")
    refuse_unknown({first: value}, KEYS, f"--set {key}", "key")
    require_text(value, f"--set {key}")
    if not rest:
        written[first] = value
    elif first in (*RECIPES, "cache", "evaluate"):
        under = written.get(first)
        written[first] = {**(under if isinstance(under, Mapping) else {}), rest: value}
    else:
        raise ValueError(f"--set {key}: {first} has no fields")
