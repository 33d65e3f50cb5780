import pytest

from comet.profile import main
from comet.profiles import projection_costs as projections
from comet.profiles.projection_costs import projection_costs
from comet.projections import make_projection
from comet.recipe import ObjectiveRecipe


def test_parameters_are_those_of_the_modules():
    recipes = [
        ObjectiveRecipe(projection="identity"),
        ObjectiveRecipe(projection="dense"),
        ObjectiveRecipe(projection="lowrank", projection_rank=5),
        ObjectiveRecipe(projection="kronecker", projection_terms=3),
    ]
    for recipe, cost in zip(recipes, projection_costs(8, [3], 5, 2), strict=True):
        counted = sum(value.numel() for value in make_projection(recipe, 8).parameters())
        assert cost.parameters == counted
        assert cost.kind.split(",")[0] == recipe.projection


def test_the_papers_projection(capsys, monkeypatch):
    monkeypatch.setattr(projections, "memory_bytes", lambda: 24 << 30)
    main(["--projection", "--length", "128", "256", "--terms", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "projection of attention maps at 128 tokens, 32 sequences a step"
    assert lines[3].split() == [
        "dense",
        "268,435,456",
        "100.000%",
        "4.0",
        "GiB",
        "51.54",
        "100.00%",
    ]
    assert lines[5].split()[4:] == ["131,072", "0.049%", "2.0", "MiB", "3.22", "6.25%"]
    assert lines[10].endswith("64.0 GiB        824.63   100.00%  does not fit this machine")


@pytest.mark.parametrize("flag", ["--length", "--terms", "--rank", "--batch"])
def test_sizes_are_at_least_one(flag):
    with pytest.raises(ValueError, match=f"{flag}: got 0, expected 1 or more"):
        main(["--projection", flag, "0"])
