"""Where fine-tuned models lie: in a model's folder, or in a run's, by seed and maybe by language.

RUN/seed-0/model/        one model for all languages
RUN/seed-0/hau/model/    one model for each language
model/comet.json         what it was trained on, and `dev`, the score it was chosen by
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comet.corpus.documents import find_language
from comet.durable import unsealed
from comet.holdings import instead
from comet.tfidf import is_tfidf

CARD = "comet.json"


class Found(NamedTuple):
    """A model.

    Attributes:
        folder: that its files lie in.
        choice: which of several seeds it is and why, None where there was only one.
    """

    folder: Path
    choice: str | None


def find_model(folder: str | Path, language: str | None = None, *, flag: str = "--model") -> Found:
    """Find the model of a folder; of several seeds the best on dev, the first of equals.

    Args:
        folder: a model's, a run's that `comet.finetune` wrote, or that of one of a run's seeds.
        language: two- or three-letter code, needed where there is a model for each.
        flag: the option that named the folder, for messages.

    Raises:
        ValueError: there is no model, or none of this language.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{flag}: {folder} is not a folder")
    for one in (folder, folder / "model"):
        if _is_model(one):
            return Found(one, None)
    seeds = sorted(folder.glob("seed-*"), key=_seed) or [folder]
    models = [seed / "model" for seed in seeds if _is_model(seed / "model")]
    models = models or _of_language(folder, seeds, language, flag)
    if len(models) == 1:
        return Found(models[0], None)
    scores = {model: _dev(model) for model in models}
    known = {model: score for model, score in scores.items() if score is not None}
    if len(known) < len(models):
        return Found(
            models[0], f"{models[0].relative_to(folder)}, the first of {len(models)} seeds"
        )
    best = max(known, key=lambda model: known[model])
    why = f"of {len(models)} seeds the best on dev ({known[best]:.4f})"
    return Found(best, f"{best.relative_to(folder)}, {why}")


def _of_language(
    folder: Path, seeds: Sequence[Path], language: str | None, flag: str
) -> list[Path]:
    """The models of one language, in the order of seeds."""
    by_language: dict[str, list[Path]] = {}
    for seed in seeds:
        for model in sorted(seed.glob("*/model")):
            if _is_model(model):
                by_language.setdefault(model.parent.name, []).append(model)
    if not by_language:
        raise ValueError(
            f"{flag}: {folder} holds no fine-tuned model"
            + (
                instead(folder, "fine-tuned model")
                or ": neither model/, seed-N/model/ nor seed-N/LANG/model/"
            )
        )
    if language is None and len(by_language) == 1:
        return next(iter(by_language.values()))
    chosen = by_language.get(find_language(language or "", by_language) or "")
    if chosen is None:
        raise ValueError(
            f"--language: got {language or 'none'}, but {folder} has a model for each of "
            f"{', '.join(sorted(by_language))}; choose one"
        )
    return chosen


def _is_model(folder: Path) -> bool:
    return is_tfidf(folder) or (folder / "config.json").is_file()


def _seed(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("seed-")
    return (int(number) if number.isdecimal() else 1 << 31, folder.name)


def _dev(model: Path) -> float | None:
    """The score a model was chosen by, None where it is not said.

    Raises:
        ValueError: the file that says it is not what was written.
    """
    try:
        card = unsealed(json.loads((model / CARD).read_text("utf-8")))
    except OSError:
        return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{model / CARD} is damaged: {error}") from error
    return float(card["dev"]) if isinstance(card.get("dev"), (int, float)) else None
