"""Options spelt otherwise, or empty, in every command."""

from importlib import import_module

import pytest
from test_configuration import COMPLETE, recipe_of

from comet import adapt, finetune, predict
from comet.configuration import build, parse_command, read_recipe, shipped
from comet.finetune_recipe import FinetuneRecipe
from comet.recipe import AdaptRecipe, DistillRecipe

COMMANDS = {  # one option of each that takes text, and that option misspelt
    "adapt": ("--model", "--modle"),
    "cache_teacher": ("--teacher", "--techer"),
    "card": ("--license", "--licence"),
    "distill": ("--teacher", "--techer"),
    "evaluate": ("--run", "--rum"),
    "experiment": ("--teacher", "--techer"),
    "export": ("--model", "--modle"),
    "factorize": ("--output", "--outptu"),
    "finetune": ("--model", "--modle"),
    "initialise": ("--teacher", "--techer"),
    "predict": ("--model", "--modle"),
    "profile": ("--model", "--modle"),
    "report.__main__": ("--title", "--titel"),
    "trim": ("--model", "--modle"),
}
FROM = {"teacher": {"model": "t"}, "corpus": {"paths": ["c"]}}
POSITIONAL = {
    "card": ["d"],
    "experiment": ["g", "--output", "d"],
    "factorize": ["s"],
    "report.__main__": ["r"],
}
REQUIRED = {
    "predict": ["--model", "m"],
    "export": ["--model", "m", "--format", "onnx"],
    "profile": ["--model", "m"],
}
REQUIRED["trim"] = ["--model", "m", "--corpus", "c", "--output", "o"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_what_is_empty_and_knows_what_was_meant(command):
    main = import_module(f"comet.{command}").main
    flag, misspelt = COMMANDS[command]
    needed = [*POSITIONAL.get(command, []), *REQUIRED.get(command, [])]
    for empty in ([flag, ""], [flag, "  "], [f"{flag}="]):
        with pytest.raises(ValueError, match=rf"^{flag}: got .*expected text that is not empty"):
            main([*needed, *empty])
    with pytest.raises(
        ValueError, match=rf"unrecognized arguments: {misspelt} x \(did you mean {flag}\?\)"
    ):
        main([*needed, misspelt, "x"])
    if command in POSITIONAL:
        with pytest.raises(ValueError, match="got ''"):
            main(["", *needed[1:]])


@pytest.mark.parametrize(
    ("given", "part", "field", "value"),
    [
        (["--learning_rate", "0.01"], "optimisation", "learning_rate", 0.01),
        (["--learning-rate", "0.01"], "optimisation", "learning_rate", 0.01),
        (["--lr=0.01"], "optimisation", "learning_rate", 0.01),
        (["--temperature", "3"], "objective", "temperature", 3.0),
        (["--max_steps", "1e3"], "optimisation", "steps", 1000),
        (["--max-steps=200"], "optimisation", "steps", 200),
        (["--batch_size", "8"], "optimisation", "batch_size", 8),
        (["--optimisation.batch-size", "8"], "optimisation", "batch_size", 8),
        (["--bf16"], "optimisation", "precision", "bfloat16"),
        (["--fp16"], "optimisation", "precision", "float16"),
        (["--precision", "bf16"], "optimisation", "precision", "bfloat16"),
        (["--optimisation.precision", "fp16"], "optimisation", "precision", "float16"),
        (["--no-gradient_checkpointing"], "optimisation", "gradient_checkpointing", False),
        (["--max_seq_length", "64"], "corpus", "max_length", 64),
        (["--logging_steps", "1e1"], "run", "log_every", 10),
        (["--save_total_limit", "3"], "run", "keep_checkpoints", 3),
        (["--teacher.attention_layer", "1e0"], "teacher", "attention_layer", 1),
        (["--output_dir", "o"], "run", "output", "o"),
    ],
)  # fmt: skip
def test_other_spellings_that_mean_the_same_are_taken(given, part, field, value):
    found = getattr(getattr(recipe_of(*COMPLETE, *given), part), field)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "m"], r"did you mean --teacher.model or --student.model\?"),
        (["--attention_layer", "1"], r"--teacher.attention_layer or --student.attention_layer"),
        (["--per_device_train_batch_size", "8"], "--batch-size, which counts over all processes"),
        (["--num_train_epochs", "3"], "--steps, a run is as long as its steps"),
        (["--epochs", "3"], "--steps, a run is as long as its steps"),
        (["--gradient_accumulation_steps", "2"], "--optimisation.accumulation, which cuts"),
        (["--resume_from_checkpoint", "d"], "--resume, with the run's --output"),
        (["--warmup_ratio", "0.1"], "--optimisation.warmup_steps, which counts steps"),
        (["--objective.temprature", "1"], "did you mean --objective.temperature"),
        (["--temprature", "1"], "did you mean --objective.temperature"),
        (["--objective.kd_tokens", "maskd"], r"got 'maskd' \(did you mean 'masked'\?\)"),
        (["--optimisation.precision", "bf17"], "expected one of float32, bfloat16, float16"),
        (["--steps", "1e-1"], "got '1e-1', expected a whole number"),
        (["--steps", "1e30"], "got '1e30', expected a whole number"),
        (["--corpus", "a,,b"], "got 'a,,b', which has an empty item"),
        (["--languages", ","], "got ',', which has an empty item"),
    ],
)
def test_what_does_the_like_is_suggested(given, said):
    with pytest.raises(ValueError, match=said):
        recipe_of(*COMPLETE, *given)


@pytest.mark.parametrize(
    ("kind", "module", "given", "part", "field", "value"),
    [
        (FinetuneRecipe, finetune, ["--num_train_epochs", "3"], "optimisation", "epochs", 3),
        (FinetuneRecipe, finetune, ["--warmup_ratio", "0.1"], "optimisation", "warmup", 0.1),
        (FinetuneRecipe, finetune, ["--model_name_or_path", "m"], "model", "model", "m"),
        (FinetuneRecipe, finetune, ["--class_weights", "balanced"], "objective", "class_weights", "balanced"),
        (AdaptRecipe, adapt, ["--steps", "3"], "optimisation", "steps", 3),
        (AdaptRecipe, adapt, ["--max_steps", "3"], "optimisation", "steps", 3),
        (AdaptRecipe, adapt, ["--hidden-size", "64"], "model", "hidden_size", 64),
    ],
)  # fmt: skip
def test_the_other_commands_know_them_too(kind, module, given, part, field, value):
    found = parse_command(
        kind,
        given,
        program="",
        description="",
        shortcuts=module.SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    assert found.content[part][field] == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("teacher: {model: ''}", r"teacher\.model: got '', expected text that is not empty"),
        ("corpus: {paths: [a, ' ']}", r"corpus\.paths: got ' ', expected text that is not empty"),
        ("run: {trackers: ['']}", r"run\.trackers: got ''"),
        ("learning_rate: 1", r"unknown part 'learning_rate' \(did you mean optimisation\.learning_rate\?\)"),
        ("max_steps: 1", r"unknown part 'max_steps' \(did you mean optimisation\.steps\?\)"),
        ("optimisation: {max_steps: 1}", r"unknown field of optimisation 'max_steps' \(did you mean 'steps'\?\)"),
        ("optimisation: {steps: 1e-1}", "expected a whole number"),
        ("command: adapt", "is a recipe of python -m comet.adapt, not of comet.distill"),
    ],
)  # fmt: skip
def test_files_say_so_likewise(tmp_path, content, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_recipe(DistillRecipe, str(file))


def test_files_take_the_usual_names_of_values(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "command: distill\noptimisation: {steps: 1e3, batch_size: 1.6e+1, precision: bf16}\n"
    )
    found = build(DistillRecipe, {**read_recipe(DistillRecipe, str(file)), **FROM})
    assert found.optimisation.steps == 1000
    assert found.optimisation.batch_size == 16
    assert found.optimisation.precision == "bfloat16"


def test_a_misspelt_option_is_named_where_it_was_required():
    with pytest.raises(
        ValueError, match=r"required: --model; --modle is unknown \(did you mean --model\?\)"
    ):
        predict.main(["--modle", "m"])


def test_a_recipe_belongs_to_its_command():
    assert shipped(DistillRecipe) == ["paper", "quickstart"]
    assert shipped(AdaptRecipe) == ["adapt", "from-scratch", "toy-teacher"]
    assert shipped(FinetuneRecipe) == []
    for name in shipped(AdaptRecipe):
        with pytest.raises(
            ValueError, match=f"{name} is a recipe of python -m comet.adapt, not of comet.distill"
        ):
            recipe_of("--recipe", name)
    with pytest.raises(ValueError, match=r"no recipe is called 'paper2'; give a \.yaml file"):
        read_recipe(FinetuneRecipe, "paper2")
