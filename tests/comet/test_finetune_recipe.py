"""What a fine-tuning recipe refuses, in one line, and what it fills in."""

from dataclasses import replace

import pytest
from tiny_tasks import recipe_for

from comet.finetune import finetune as run_finetune
from comet.finetune_recipe import FinetuneRecipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.7}, "objective.alpha: got 0.7, expected nothing, unless --teacher"),
        ({"label_weight": 0.0}, "objective.label_weight: got 0.0, expected a number above 0"),
        ({"seeds": [1, 1]}, "run.seeds: got"),
        ({"attention_dropout": 1.0}, "model.attention_dropout: got 1.0, expected 0 or more and"),
        ({"max_length": 100}, "model.max_length: got 100, but the model has positions for 64"),
        ({"languages": ["hau", "xho"]}, "has no train file (.tsv, .csv, .jsonl) for xho"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(teacher_folder, sentiment, tmp_path, given, message):
    with pytest.raises(ValueError, match=r".") as raised:
        run_finetune(recipe_for(teacher_folder, sentiment, **given), tmp_path / "run")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_several_seeds_of_tfidf_are_refused(sentiment):
    with pytest.raises(ValueError, match=r"run\.seeds: got \[0, 1\], expected one, as .*tfidf"):
        recipe_for("tfidf", sentiment, seeds=[0, 1])


def test_options_of_a_model_are_refused_beside_tfidf(sentiment):
    with pytest.raises(
        ValueError, match=r"optimisation\.epochs: got 3, expected nothing, as model.model is tfidf"
    ):
        recipe_for("tfidf", sentiment, epochs=3)


def test_the_rate_follows_from_the_width_unless_it_is_given():
    recipe = FinetuneRecipe.__dataclass_fields__["optimisation"].default_factory()
    rates = [recipe.resolved(100, width).learning_rate for width in (1024, 512, 256, 64)]
    assert rates == pytest.approx([2e-5, 8e-5, 3.2e-4, 5e-4])
    assert recipe.resolved(100, 64).embedding_learning_rate is None
    faster = replace(recipe, learning_rate=1e-3, embedding_learning_rate=5e-3).resolved(100, 64)
    assert (faster.learning_rate, faster.embedding_learning_rate) == (1e-3, 5e-3)
