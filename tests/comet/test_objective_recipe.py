import pytest

from comet.finetune_recipe import FinetuneRecipe, TaskObjectiveRecipe, TunedModelRecipe
from comet.objective_recipe import ObjectiveRecipe, language_temperatures


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"alpha": 1.0, "mlm_weight": 0.5},
        {"temperature_mode": "schedule", "temperature": 4.0, "temperature_end": 1.0},
        {"temperature_mode": "adaptive", "temperature_end": 1.0},
        {"temperature_mode": "learnt", "temperature_end": 8.0},
        {"temperature_mode": "language", "language_temperatures": ["hau=1.5", "yor=2e0"]},
        {"attention_loss": "kl"},
        {"attention_loss": "relation", "relation_heads": 48},
        {"attention_reduction": "mean", "projection": "dense"},
        {"projection": "lowrank", "projection_rank": 3},
        {"projection": "kronecker", "projection_terms": 2, "projection_start": "file"},
    ],
)
def test_what_goes_together_is_taken(fields):
    ObjectiveRecipe(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"alpha": 1.5}, "alpha: got 1.5, expected a number from 0 to 1"),
        ({"mlm_weight": -1.0}, "mlm_weight: got -1.0, expected 0 or more"),
        ({"mlm_weight": float("inf")}, "mlm_weight: got inf"),
        ({"temperature": 0.0}, "temperature: got 0.0, expected a number above 0"),
        (
            {"temperature_mode": "schedule"},
            "temperature_end: got None, expected a number other than",
        ),
        ({"temperature_mode": "learnt", "temperature_end": 2.0}, "temperature_end: got 2.0"),
        ({"temperature_mode": "adaptive", "temperature_end": -1.0}, "temperature_end: got -1.0"),
        ({"temperature_end": 3.0}, "temperature_end: got 3.0, expected nothing, unless"),
        ({"temperature_mode": "language"}, "language_temperatures: got nothing"),
        ({"language_temperatures": ["hau=2"]}, "unless objective.temperature_mode is language"),
        (
            {"temperature_mode": "learnt", "temperature_end": 5.0, "alpha": 0.0},
            "temperature_mode: got learnt, expected nothing, unless objective.alpha is above 0",
        ),
        ({"projection": "kronecker", "alpha": 1.0}, "projection: got kronecker, expected nothing"),
        ({"projection": "dense", "attention_loss": "kl"}, "attention_loss is mse"),
        ({"projection": "dense", "attention_loss": "relation"}, "attention_loss is mse"),
        ({"attention_loss": "kl", "alpha": 1.0}, "attention_loss: got kl, expected nothing"),
        ({"relation_heads": 8}, "relation_heads: got 8, expected nothing, unless"),
        ({"relation_heads": 0, "attention_loss": "relation"}, "relation_heads: got 0"),
        ({"projection_terms": 2}, "projection_terms: got 2, expected nothing, unless"),
        (
            {"projection_rank": 2, "projection": "kronecker"},
            "unless objective.projection is lowrank",
        ),
        ({"projection_start": "f"}, "projection_start: got f, expected nothing, unless"),
        ({"projection_terms": 33, "projection": "kronecker"}, "projection_terms: got 33"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        ObjectiveRecipe(**fields)


@pytest.mark.parametrize("idle", [{"attention_loss": "kl"}, {"alpha": 1.0}])
def test_the_reduction_teaches_by_default_and_recipes_of_earlier_runs_are_taken(idle):
    assert ObjectiveRecipe().attention_reduction == "row"
    ObjectiveRecipe(attention_reduction="mean", **idle)
    FinetuneRecipe(
        model=TunedModelRecipe(model="m"), objective=TaskObjectiveRecipe(attention_reduction="mean")
    )


@pytest.mark.parametrize("item", ["hau", "=2", "hau=hot", "hau=0", "hau=-1", "hau=nan", "hau=inf"])
def test_a_temperature_of_a_language_is_a_number_above_0(item):
    with pytest.raises(ValueError, match=r"language_temperatures: got .* such as hau=1\.5"):
        ObjectiveRecipe(temperature_mode="language", language_temperatures=[item])


def test_a_language_comes_once():
    both = ["hau=1", "hau=2"]
    with pytest.raises(ValueError, match="once"):
        ObjectiveRecipe(temperature_mode="language", language_temperatures=both)


def test_temperatures_by_language():
    recipe = ObjectiveRecipe(
        temperature_mode="language", language_temperatures=["hau=1.5", "yor=3"]
    )
    assert language_temperatures(recipe) == {"hau": 1.5, "yor": 3.0}
