import pytest

from comet.configuration import build, contradiction, parse_command, read_recipe, to_yaml
from comet.distill import SHORTCUTS
from comet.recipe import AdaptRecipe, DistillRecipe

COMPLETE = ["--teacher", "t", "--corpus", "c"]


def recipe_of(*argv):
    given = parse_command(
        DistillRecipe,
        argv,
        program="comet.distill",
        description="",
        shortcuts=SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    return build(DistillRecipe, given.content)


def test_the_command_line_beats_the_file_and_the_file_beats_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("objective: {temperature: 3, alpha: 0.25}\ncorpus: {paths: [a, b]}\n")
    recipe = recipe_of("--recipe", str(file), "--teacher", "t", "--objective.alpha", "0.75")
    assert recipe.objective.alpha == 0.75
    assert recipe.objective.temperature == 3.0
    assert recipe.corpus.paths == ["a", "b"]
    assert recipe.optimisation.batch_size == 32


def test_shortcuts_are_flags_of_fields():
    recipe = recipe_of(*COMPLETE, "--fused", "--languages", "hau", "ibo", "--steps", "500")
    assert recipe.objective.fused
    assert recipe.corpus.languages == ["hau", "ibo"]
    assert recipe.optimisation.steps == 500


def test_yaml_takes_a_rate_without_a_dot(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimisation: {learning_rate: 5e-4}\n")
    assert recipe_of(*COMPLETE, "--recipe", str(file)).optimisation.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("-1", -1), ("last", "last"), ("upper-middle", "upper-middle")]
)
def test_a_layer_is_a_number_or_a_name(tmp_path, text, value):
    file = tmp_path / "mine.yaml"
    file.write_text(f"teacher: {{attention_layer: {text}}}\n")
    assert recipe_of(*COMPLETE, "--recipe", str(file)).teacher.attention_layer == value
    assert recipe_of(*COMPLETE, "--student.attention_layer", text).student.attention_layer == value


@pytest.mark.parametrize(
    "more",
    [
        ["--optimisation.muon_learning_rate", "0.01"],
        ["--teacher.attention_layer", "upper-middle", "--student.attention_layer", "-2"],
        ["--objective.temperature_mode", "learnt", "--objective.temperature_end", "5"],
        [
            "--objective.temperature_mode",
            "language",
            "--objective.language_temperatures",
            "hau=1.5",
            "yor=3",
        ],
    ],
)
def test_a_recipe_reads_back_as_it_was_written(tmp_path, more):
    recipe = recipe_of(*COMPLETE, *more)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    assert build(DistillRecipe, read_recipe(DistillRecipe, str(file))) == recipe


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("paper", DistillRecipe),
        ("quickstart", DistillRecipe),
        ("toy-teacher", AdaptRecipe),
        ("adapt", AdaptRecipe),
    ],
)
def test_shipped_recipes_are_valid(name, kind):
    content = read_recipe(kind, name)
    content.setdefault("corpus", {}).setdefault("paths", ["toy"])
    build(kind, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("objectives: {alpha: 1}", "did you mean 'objective'"),
        ("objective: {temprature: 1}", "did you mean 'temperature'"),
        ("objective: {temperature: hot}", "expected a number"),
        ("objective: {kd_tokens: some}", "expected one of all, masked"),
        ("teacher: {attention_layer: first}", "a whole number or one of last, upper-middle"),
        ("teacher: {attention_layer: 1.5}", "a whole number or one of last, upper-middle"),
        ("objective: {language_temperatures: [1.5]}", "expected text"),
        ("objective: 3", "expected fields"),
        ("optimisation: {steps: 1.5}", "expected a whole number"),
        ("optimisation: {steps: true}", "expected a whole number"),
        ("corpus: {paths: text}", "expected a list"),
        ("- a", "expected parts"),
        ("objective: {", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_remedy(tmp_path, content, said):
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_recipe(DistillRecipe, str(file))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--objective.temprature", "1"], "did you mean --objective.temperature"),
        (["--recipe", "papper"], "did you mean 'paper'"),
        (["--recipe", "nowhere.yaml"], "cannot read nowhere.yaml"),
        ([*COMPLETE, "--objective.alpha", "2"], "objective.alpha: got 2.0"),
        ([*COMPLETE, "--objective.temperature", "0"], "objective.temperature: got 0.0"),
        (
            [*COMPLETE, "--student.heads", "7", "--student.hidden_size", "256"],
            "a multiple of student.heads",
        ),
        ([*COMPLETE, "--optimisation.warmup_steps", "5000"], "fewer than optimisation.steps"),
        (
            [*COMPLETE, "--corpus.mask_probability", "0", "--objective.kd_tokens", "masked"],
            "kd_tokens",
        ),
        (["--teacher", "t"], "corpus.paths: got nothing"),
        (["--corpus", "c"], "teacher.model: got none"),
        ([*COMPLETE, "--steps", "many"], "got 'many', expected a whole number"),
        (
            [*COMPLETE, "--teacher.attention_layer", "first"],
            "teacher.attention_layer: got 'first', expected a whole number or one of last, upper-middle",
        ),
        (
            [*COMPLETE, "--corpus.mask_probability", "0", "--objective.mlm_weight", "1"],
            "objective.mlm_weight: got 1.0 with corpus.mask_probability 0",
        ),
        (
            ["--corpus", "toy", "--teacher.revision", "main"],
            "teacher.revision: got main, expected nothing, unless teacher.model",
        ),
        (
            [*COMPLETE, "--teacher.cache", "d", "--objective.attention_loss", "relation"],
            "objective.attention_loss: got relation with teacher.cache",
        ),
    ],
)
def test_a_wrong_command_is_refused_with_the_remedy(argv, said):
    with pytest.raises(ValueError, match=said):
        recipe_of(*argv)


@pytest.mark.parametrize(
    ("argv", "steps", "line"),
    [
        (
            [*COMPLETE, "--steps", "50"],
            5,
            "100 would not be below optimisation.steps (50); it is 5",
        ),
        ([*COMPLETE, "--steps", "100"], 10, "100 would not be below optimisation.steps (100)"),
        ([*COMPLETE, "--steps", "101"], 100, ""),
        (["--recipe", "paper", "--steps", "250"], 2, "1,000 would not be below"),
        (["--recipe", "quickstart", "--steps", "1"], 0, "20 would not be below"),
        ([*COMPLETE, "--steps", "9", "--optimisation.warmup_steps", "8"], 8, ""),
    ],
)
def test_a_warm_up_that_nobody_set_is_shortened_in_proportion_with_a_line(
    argv, steps, line, capsys
):
    assert recipe_of(*argv).optimisation.warmup_steps == steps
    assert line in capsys.readouterr().out


def test_a_warm_up_that_somebody_set_is_refused(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("optimisation: {warmup_steps: 100}\n")
    for argv in (["--recipe", str(file)], ["--optimisation.warmup_steps", "100"]):
        with pytest.raises(
            ValueError, match=r"warmup_steps: got 100, .* fewer than .*steps \(50\)"
        ):
            recipe_of(*COMPLETE, *argv, "--steps", "50")
    file.write_text("optimisation: {steps: 50}\n")
    assert recipe_of(*COMPLETE, "--recipe", str(file)).optimisation.warmup_steps == 5
    assert "would not be below optimisation.steps (50)" in capsys.readouterr().out


def test_a_warm_start_is_shortened_with_the_steps(capsys):
    given = parse_command(
        AdaptRecipe,
        ["--recipe", "from-scratch", "--corpus.paths", "c", "--steps", "520"],
        program="comet.adapt",
        description="",
        shortcuts={"--steps": "optimisation.steps"},
        default_recipe=lambda flags: None,
    )
    recipe = build(AdaptRecipe, given.content)
    assert recipe.warm_start.steps == 450
    assert recipe.optimisation.warmup_steps == 100
    assert "warm_start.steps: 4,500 would not be below" in capsys.readouterr().out


def test_a_contradiction_names_the_field():
    stored = {"objective": {"alpha": 0.5, "temperature": 2.0}}
    assert contradiction({"objective": {"alpha": 0.5}}, stored) is None
    assert "objective.alpha is 0.5 there, 0.7 here" in str(
        contradiction({"objective": {"alpha": 0.7}}, stored)
    )
