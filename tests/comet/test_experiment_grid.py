"""Grids as people write them: what they mean, and what is refused."""

from pathlib import Path

import pytest
import yaml

from comet.experiments.grid import read_grid
from comet.experiments.plan import make_plan
from comet.experiments.written import GRIDS
from comet.student_recipe import Sizes

SHARED = {
    "teacher": "a/teacher",
    "distill": {"corpus": {"paths": ["toy"]}, "optimisation.steps": 200},
    "finetune": {"task": {"data": "somewhere"}},
}


@pytest.fixture
def read(tmp_path):
    def read(content, **given):
        path = tmp_path / "grid.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        )
        return read_grid(str(path), {key.replace("__", "."): value for key, value in given.items()})

    return read


def planned(grid, tmp_path):
    plan = make_plan(grid, tmp_path / "experiment")
    return {stage.title: stage for stage in plan.stages}, plan


def test_nested_and_dotted_keys_are_the_same(read):
    contents = [
        {"distill": {"objective": {"alpha": 1.0}, "student.layers": 2}},
        {"distill": {"objective.alpha": 1.0, "student": {"layers": 2}}},
        {"distill.objective.alpha": 1.0, "distill": {"student.layers": 2}},
    ]
    cells = [read({**SHARED, "cells": {"one": content}}).cells[0] for content in contents]
    for cell in cells:
        assert cell.content("distill") == {
            "corpus": {"paths": ["toy"]},
            "optimisation": {"steps": 200},
            "objective": {"alpha": 1.0},
            "student": {"layers": 2},
        }


def test_warm_ups_of_shipped_grids_and_recipes_are_shortened_with_the_steps(read, capsys):
    given = {"teacher": "t", "distill.corpus.paths": ["toy"], "distill.optimisation.steps": 100}
    grid = read_grid("ablation", given)
    assert grid.cells[0].content("distill")["optimisation"]["warmup_steps"] == 5
    assert "optimisation.warmup_steps: 500 would not be below" in capsys.readouterr().out
    shared = {"adapt": {"recipe": "from-scratch", "optimisation.steps": 52}, "cells": {"one": {}}}
    grid = read(shared)
    assert grid.adapt["optimisation.warmup_steps"] == 1
    assert grid.adapt["warm_start.steps"] == 45
    extended = {"extends": "ablation", "distill.optimisation.steps": 50}
    grid = read(extended, teacher="t", distill__corpus__paths=["toy"])
    assert grid.cells[0].content("distill")["optimisation"]["warmup_steps"] == 2
    own = {**SHARED, "distill.optimisation": {"steps": 9, "warmup_steps": 9}, "cells": {"one": {}}}
    with pytest.raises(ValueError, match=r"warmup_steps: got 9, expected .* fewer than"):
        make_plan(read(own), Path("x"))


@pytest.mark.parametrize("name", sorted(file.stem for file in GRIDS.glob("*.yaml")))
def test_students_of_shipped_grids_have_sizes_of_their_own_or_the_teachers(name):
    """One that named some alone would have the others from whatever teacher it gets."""
    grid = read_grid(name, {"distill.corpus.paths": ["toy"], "adapt.corpus.paths": ["toy"]})
    for cell in grid.cells:
        student = cell.content("distill").get("student", {})
        assert len(student.keys() & set(Sizes._fields)) in (0, 4), cell.name


def test_axes_are_multiplied_and_cells_follow(read):
    axes = {
        "distill.objective.temperature": [1, 2.5],
        "layer": {"last": {}, "upper": {"distill.teacher.attention_layer": "upper-middle"}},
    }
    grid = read({**SHARED, "axes": axes, "cells": {"floor": {"model": "tfidf"}}})
    assert [cell.name for cell in grid.cells] == [
        "temperature 1 layer last",
        "temperature 1 layer upper",
        "temperature 2.5 layer last",
        "temperature 2.5 layer upper",
        "floor",
    ]
    fourth = grid.cells[3]
    assert fourth.folder == "temperature-2.5-layer-upper"
    assert fourth.content("distill")["objective"] == {"temperature": 2.5}
    assert fourth.content("distill")["teacher"] == {"attention_layer": "upper-middle"}
    assert grid.only(["temperature-1-layer-last", "floor"]) == ("temperature 1 layer last", "floor")


def test_a_cell_goes_over_the_command_line_over_the_grid_over_its_base_over_a_recipe(
    read, tmp_path
):
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump(
            {
                **SHARED,
                "distill": {"recipe": "paper", "run.log_every": 7, "run.seed": 5},
                "seeds": [1],
                "cells": {"of the base": {}},
            }
        )
    )
    content = {
        "extends": "base.yaml",
        "distill": {"run": {"seed": 6}, "optimisation.steps": 300},
        "cells": {"a": {"distill.optimisation.batch_size": 3}, "b": {}},
    }
    grid = read(
        content, **{"distill.optimisation.steps": 400, "distill.optimisation.batch_size": 2}
    )
    first, second = (cell.content("distill") for cell in grid.cells)
    assert [cell.name for cell in grid.cells] == ["a", "b"]
    assert first["run"]["log_every"] == 7
    assert first["run"]["seed"] == 6
    assert (first["optimisation"]["steps"], first["optimisation"]["batch_size"]) == (400, 3)
    assert second["optimisation"]["batch_size"] == 2
    assert first["optimisation"]["precision"] == "bfloat16"  # the paper's
    assert grid.seeds == (1,)


def test_a_given_teacher_takes_the_place_of_one_that_is_made(read, tmp_path):
    content = {
        **SHARED,
        "adapt": {"recipe": "from-scratch", "corpus.paths": ["toy"]},
        "cells": {"a": {}},
    }
    del content["teacher"]
    stages, plan = planned(read(content), tmp_path)
    assert stages["teacher"].program == "comet.adapt"
    assert plan.teacher == str(stages["teacher"].path / "model")
    assert stages["a: distill"].needs == (stages["teacher"],)
    stages, plan = planned(read(content, teacher="their/own", adapt__corpus__paths=["x"]), tmp_path)
    assert "teacher" not in stages
    assert plan.teacher == "their/own"


def test_cells_share_a_cache_where_one_can_serve_them(read, tmp_path):
    cells = {
        "base": {},
        "hotter": {"distill.objective.temperature": 4.0},
        "longer": {"distill.optimisation.steps": 500},
        "upper": {"distill.teacher.attention_layer": "upper-middle"},
        "relation": {"distill.objective.attention_loss": "relation"},
    }
    stages, plan = planned(read({**SHARED, "cells": cells}), tmp_path)
    caches = [stage for title, stage in stages.items() if title.startswith("cache")]
    assert len(caches) == 1
    assert caches[0].flags[:2] == ("--batches", "500")
    for name in ("base", "hotter", "longer"):
        assert stages[f"{name}: distill"].needs == (caches[0],)
        assert stages[f"{name}: distill"].content()["teacher"]["cache"] == str(caches[0].path)
    for name in ("upper", "relation"):
        assert stages[f"{name}: distill"].needs == ()
        assert "cache" not in stages[f"{name}: distill"].content()["teacher"]
    assert "one cache for base, hotter, longer" in plan.remarks
    assert any(remark.startswith("upper: the teacher runs beside it") for remark in plan.remarks)
    assert any(remark.startswith("relation: the teacher runs beside it") for remark in plan.remarks)
    without, _ = planned(read({**SHARED, "cache": False, "cells": cells}), tmp_path)
    assert not any(title.startswith("cache") for title in without)


def test_logits_are_shared_at_one_temperature_alone(read, tmp_path):
    cells = {
        "base": {},
        "again": {"distill.run.log_every": 3},
        "hotter": {"distill.objective.temperature": 4.0},
    }
    settings = {"keep": "logits", "top_k": 8}
    stages, _ = planned(read({**SHARED, "cache": settings, "cells": cells}), tmp_path)
    (cache,) = (stage for title, stage in stages.items() if title.startswith("cache"))
    assert cache.flags == ("--batches", "200", "--keep", "logits", "--top-k", "8")
    assert stages["hotter: distill"].needs == ()


def test_twins_and_the_task_teacher(read, tmp_path):
    cells = {
        "big": {"distill.student.layers": 4},
        "small": {"distill.student.layers": 2, "task_teacher": "the teacher"},
        "twin": {"model": "mlm", "like": "small", "mlm.optimisation.learning_rate": 0.001},
        "random": {"model": "random"},
        "the teacher": {"model": "teacher"},
        "floor": {"model": "tfidf"},
    }
    stages, _ = planned(read({**SHARED, "seeds": [3, 4], "cells": cells}), tmp_path)
    assert stages["twin: probe"].needs == (stages["small: distill"],)
    assert stages["twin: probe"].content()["optimisation"]["learning_rate"] == 0.001
    random = stages["random: finetune"].content()
    assert random["model"] == {
        "model": str(stages["big: distill"].path / "student"),
        "initial": "random",
    }
    taught = stages["small: finetune"]
    assert taught.content()["teacher"] == {"model": str(stages["the teacher: finetune"].path)}
    assert stages["the teacher: finetune"] in taught.needs
    assert taught.content()["run"] == {"seeds": [3, 4]}
    measured = stages["small: evaluate"]
    assert measured.beside_runs == (
        ("--teacher", str(stages["the teacher: finetune"].path), stages["the teacher: evaluate"]),
        ("--floor", str(stages["floor: finetune"].path), stages["floor: evaluate"]),
    )
    assert [flag for flag, *_ in stages["the teacher: evaluate"].beside_runs] == ["--floor"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cels": {}}, "unknown key 'cels' \\(did you mean 'cells'"),
        ({"cells": {"a": {"distil.objective.alpha": 1}}}, "unknown key 'distil' \\(did you mean 'distill'"),
        ({"distill": {"objektive.alpha": 1}}, "distill: unknown part 'objektive' \\(did you mean 'objective'"),
        ({"cells": {"a": {"distill.objective.alfa": 1}}}, r"cells\.a: distill: unknown field of objective 'alfa'"),
        ({"axes": {"distill.objective.alpha": ["much"]}}, "objective.alpha: got 'much', expected a number"),
        ({"axes": {"alpha": [1]}}, "axes.alpha: got .* expected a list of values of a key such as"),
        ({"cells": {"a": {"model": "randon"}}}, "got 'randon' \\(did you mean 'random'"),
        ({"cells": {"a": {"model": "tfidf", "distill.objective.alpha": 1}}}, "does nothing for a cell whose model"),
        ({"cells": {"a": {"like": "a"}}}, "like: does nothing"),
        ({"cells": {"a": {}, "b": {"model": "mlm", "like": "c"}}}, "like: no cell is called 'c'"),
        ({"cells": {"b": {"model": "mlm"}}}, "mlm is the twin of a distilled cell, and there is none"),
        ({"cells": {"a": {"task_teacher": "a"}}}, "it would teach itself"),
        ({"cells": {"a b": {}, "a-b": {}}}, "would share the folder a-b"),
        ({"cells": {"a, b": {}}}, "no comma"),
        ({"cells": {}}, "got no cells"),
        ({"cells": {"a": {"budget": "money", "model": "mlm"}}}, "got 'money', expected time or steps"),
        ({"seeds": 3}, "seeds: got 3, expected a list"),
        ({"cache": {"keeps": "logits"}}, "cache: unknown key 'keeps' \\(did you mean 'keep'"),
        ({"evaluate": {"split": "train"}}, "evaluate.split: got 'train'"),
        ({"adapt": {"model.layers": 2}}, "give a teacher, or how one is made, not both"),
        ({"published": "afrisent"}, "published: .*'afrisent' \\(did you mean 'afrisenti'"),
        ({"extends": "ablatio"}, "no grid is called 'ablatio' \\(did you mean 'ablation'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(read, change, message):
    with pytest.raises(ValueError, match=message) as refused:
        read({**SHARED, "cells": {"a": {}}, **change})
    assert "\n" not in str(refused.value)


def test_a_recipe_that_cannot_be_is_refused_with_its_cell(read, tmp_path):
    grid = read({**SHARED, "cells": {"a": {"distill.objective.projection_rank": 3}}})
    with pytest.raises(ValueError, match=r"^a: distill: objective\.projection_rank: got 3"):
        planned(grid, tmp_path)
    grid = read({**SHARED, "teacher": None, "cells": {"a": {}}})
    with pytest.raises(ValueError, match="a: there is no teacher; give --teacher"):
        planned(grid, tmp_path)


@pytest.mark.parametrize("name", sorted(file.stem for file in GRIDS.glob("*.yaml")))
def test_shipped_grids_are_sound(name, tmp_path):
    given = {
        "distill.corpus.paths": ["text"],
        "adapt.corpus.paths": ["text"],
        "finetune.task.data": "data",
    }
    if not name.startswith("reproduction"):
        given["teacher"] = "a/teacher"
    grid = read_grid(name, given)
    stages, _ = planned(grid, tmp_path)
    assert grid.title != grid.name
    assert all(f"{cell.name}: evaluate" in stages for cell in grid.cells)
    assert (grid.evaluate.split == "test") == name.startswith("reproduction")
