"""The recipe of the objective: weights, temperatures, attention loss and projection; idle options are refused."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from comet.configuration import is_idle, option, require, require_positive


@dataclass(frozen=True)
class ObjectiveRecipe:
    """L = α · L_kd + (1 − α) · L_att + mlm_weight · L_mlm (AfroXLMR-Comet, arXiv 2502.18020)."""

    fused: bool = option(False, "the fused kernels instead of plain torch")
    alpha: float = option(0.5, "weight of the softened KL; the attention term has 1 − α")
    mlm_weight: float = option(
        0.0, "weight of the cross-entropy of the masked tokens themselves, added to the others"
    )
    temperature: float = option(2.0, "softens both distributions of the KL")
    temperature_mode: Literal["constant", "language", "schedule", "adaptive", "learnt"] = option(
        "constant",
        "or from language_temperatures; over the steps to temperature_end; by the teacher's entropy at "
        "each token, temperature_end where it knows nothing; learnt, between temperature and "
        "temperature_end, to make the KL large",
    )
    temperature_end: float | None = option(
        None, "the other temperature of the modes schedule, adaptive and learnt"
    )
    language_temperatures: list[str] = option(
        [], "such as hau=1.5; other languages have objective.temperature"
    )
    kd_tokens: Literal["all", "masked"] = option("all", "tokens whose logits are matched")
    attention_loss: Literal["mse", "kl", "relation"] = option(
        "mse",
        "squared error or KL of head-averaged maps, or KL of MiniLMv2's query, key and value relations",
    )
    attention_reduction: Literal["mean", "row"] = option(
        "row",
        "squared map error: mean over the map's entries, or sum over keys, mean over queries",
        formerly="mean",
    )
    relation_heads: int = option(
        64, "heads that queries, keys and values are cut into for relations; both widths' divisor"
    )
    projection: Literal["identity", "dense", "lowrank", "kronecker"] = option(
        "identity", "learnable map from the student's attention to the teacher's"
    )
    projection_terms: int = option(4, "terms of the kronecker projection")
    projection_rank: int = option(64, "rank of the lowrank projection")
    projection_start: str | None = option(
        None, "file of python -m comet.factorize that the kronecker projection starts from"
    )

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "objective.alpha", self.alpha, "a number from 0 to 1")
        require(
            0 <= self.mlm_weight < math.inf, "objective.mlm_weight", self.mlm_weight, "0 or more"
        )
        require_temperatures(self)
        require_attention(self)
        require_projection(self)


def require_idle(recipe: ObjectiveRecipe, name: str, used: bool, unless: str) -> None:
    """Refuse a field other than its default where it would do nothing."""
    field = next(one for one in fields(recipe) if one.name == name)
    require(
        used or is_idle(field, getattr(recipe, name)),
        f"objective.{name}",
        getattr(recipe, name),
        f"nothing, unless {unless}",
    )


def require_temperatures(recipe: ObjectiveRecipe) -> None:
    """Require temperatures that are above 0, used, and enough for their mode."""
    mode, end = recipe.temperature_mode, recipe.temperature_end
    require_positive("objective", {"temperature": recipe.temperature})
    used = recipe.alpha > 0
    require_idle(recipe, "temperature_mode", used, "objective.alpha is above 0")
    if mode in ("schedule", "adaptive", "learnt"):
        require(
            end is not None and end != recipe.temperature,
            "objective.temperature_end",
            end,
            f"a number other than objective.temperature, as objective.temperature_mode is {mode}",
        )
    else:
        modes = "objective.temperature_mode is schedule, adaptive or learnt"
        require_idle(recipe, "temperature_end", False, modes)
    if end is not None:
        require_positive("objective", {"temperature_end": end})
    by_language = mode == "language"
    where = "objective.temperature_mode is language"
    require_idle(recipe, "language_temperatures", by_language, where)
    require(
        not by_language or bool(recipe.language_temperatures),
        "objective.language_temperatures",
        "nothing",
        "temperatures such as hau=1.5, as objective.temperature_mode is language",
    )
    language_temperatures(recipe)


def language_temperatures(recipe: ObjectiveRecipe) -> dict[str, float]:
    """`["hau=1.5"]` as `{"hau": 1.5}`.

    Raises:
        ValueError: an item is none of that kind, or a language comes twice.
    """
    found: dict[str, float] = {}
    for item in recipe.language_temperatures:
        language, _, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        require(
            bool(language) and language not in found and 0 < value < math.inf,
            "objective.language_temperatures",
            repr(item),
            "a language, once, and a number above 0, such as hau=1.5",
        )
        found[language] = value
    return found


def require_attention(recipe: ObjectiveRecipe) -> None:
    """Refuse options of the attention term that do not go together or do nothing."""
    trained = recipe.alpha < 1
    require_idle(recipe, "attention_loss", trained, "objective.alpha is below 1")
    squared = trained and recipe.attention_loss == "mse"
    where = "objective.attention_loss is mse and objective.alpha below 1"
    require_idle(recipe, "attention_reduction", squared, where)
    require_idle(recipe, "projection", squared, where)
    related = recipe.attention_loss == "relation"
    require_idle(recipe, "relation_heads", related, "objective.attention_loss is relation")
    require_positive("objective", {"relation_heads": recipe.relation_heads})


def require_projection(recipe: ObjectiveRecipe) -> None:
    """Require sizes that a projection can have, and refuse those of another projection."""
    terms = recipe.projection_terms
    require(1 <= terms <= 32, "objective.projection_terms", terms, "1 to 32")
    require_positive("objective", {"projection_rank": recipe.projection_rank})
    kinds = {
        "projection_terms": "kronecker",
        "projection_start": "kronecker",
        "projection_rank": "lowrank",
    }
    for name, kind in kinds.items():
        where = f"objective.projection is {kind}"
        require_idle(recipe, name, recipe.projection == kind, where)
