import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, XLMRobertaConfig

from comet.configuration import read_recipe
from comet.recipe import DistillRecipe, StudentRecipe
from comet.students import (
    count_parameters,
    load_masked_lm,
    load_tokenizer,
    make_student,
    outline_of,
    require_smaller,
    save_tokenizer,
    settled,
)

AFRO_XLMR_LARGE = XLMRobertaConfig(
    vocab_size=250_002,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=514,
    type_vocab_size=1,
)
PAPER = StudentRecipe(**read_recipe(DistillRecipe, "paper")["student"])


def test_the_papers_models_have_the_papers_sizes():
    with torch.device("meta"):
        teacher = AutoModelForMaskedLM.from_config(AFRO_XLMR_LARGE)
        student = make_student(AFRO_XLMR_LARGE, PAPER)
    assert count_parameters(teacher) == 560_142_482
    assert count_parameters(student) == 69_187_730


@pytest.mark.parametrize(("labels", "parameters"), [(2, 68_937_730), (3, 68_937_987)])
def test_the_papers_student_as_a_classifier(labels, parameters):
    with torch.device("meta"):
        config = make_student(AFRO_XLMR_LARGE, PAPER).config
        config.num_labels = labels
        classifier = AutoModelForSequenceClassification.from_config(config)
    assert count_parameters(classifier) == parameters
    assert round(4 * parameters / 2**20, 2) == 262.98


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
def test_a_student_has_the_recipes_shape_and_the_teachers_vocabulary(architecture):
    teacher = tiny_model(architecture)
    recipe = StudentRecipe(layers=2, hidden_size=16, heads=2, intermediate_size=24, dropout=0.0)
    student = make_student(teacher.config, recipe)
    assert type(student) is type(teacher)
    assert student.config.num_hidden_layers == 2
    assert student.config.hidden_size == 16
    assert student.config.vocab_size == teacher.config.vocab_size
    logits = student(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, teacher.config.vocab_size)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    headless = AutoModelForSequenceClassification.from_config(tiny_model("xlm-r").config)
    headless.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"--teacher: .* saved without its masked-language-model head"
    ):
        load_masked_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("./nowhere", "is not a folder"), ("/tmp", "holds no model")],
)
def test_a_folder_that_is_no_model_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        load_masked_lm(name)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    tiny_model("xlm-r").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "other shape", "pickle"])
def test_damaged_weights_are_refused_in_one_line(tmp_path, damage):
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "other shape":
        tiny_model("bert", hidden_size=16).config.save_pretrained(tmp_path)
    else:
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(ValueError, match="--teacher: cannot load"):
        load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
def test_dropout_is_the_recipes(architecture):
    recipe = StudentRecipe(layers=2, hidden_size=16, heads=2, intermediate_size=24, dropout=0.25)
    student = make_student(tiny_model(architecture).config, recipe)
    rates = {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.25}


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_sizes_that_are_left_open_are_half_the_teachers_and_start_from_it(architecture, heads):
    sizes = {"hidden_size": 24, "num_attention_heads": heads, "num_hidden_layers": 3}
    teacher = tiny_model(architecture, **sizes).config
    start = settled(teacher, StudentRecipe())
    found = start.recipe.sizes
    assert (start.recipe.initial, start.hindrance) == ("teacher", None)
    assert found.layers == 2
    assert found.hidden_size == {1: 12, 2: 12, 3: 16, 4: 12}[heads]
    assert found.hidden_size // found.heads == (12 if heads == 1 else 24 // heads)
    assert found.intermediate_size == 2 * found.hidden_size
    student = make_student(teacher, start.recipe)
    require_smaller(teacher, student, start.recipe)
    assert student.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (12, 512, 8, 2048)),
        ({"layers": 4}, (4, 512, 8, 2048)),
        ({"initial_layers": [0, 9, 23]}, (3, 512, 8, 2048)),
        ({"hidden_size": 256}, (12, 256, 4, 1024)),
        ({"hidden_size": 200}, (12, 200, 4, 800)),
        ({"heads": 4}, (12, 256, 4, 1024)),
        ({"heads": 16}, (12, 512, 16, 2048)),
        ({"heads": 8, "intermediate_size": 300}, (12, 512, 8, 300)),
        ({"hidden_size": 2048}, (12, 2048, 32, 8192)),
        ({"embedding_size": 64}, (12, 512, 8, 2048)),
    ],
)
def test_sizes_that_were_given_decide_the_others(given, sizes):
    assert tuple(settled(AFRO_XLMR_LARGE, StudentRecipe(**given)).recipe.sizes) == sizes


def test_embeddings_as_wide_as_the_layers_that_follow_from_the_teacher_are_refused():
    with pytest.raises(
        ValueError, match=r"embedding_size: got 512, .* below .*hidden_size \(512\)"
    ):
        settled(AFRO_XLMR_LARGE, StudentRecipe(embedding_size=512))


def test_a_student_that_is_no_smaller_is_refused_unless_asked_for():
    teacher = tiny_model("bert").config
    sizes = {"layers": 4, "hidden_size": 32, "heads": 4, "intermediate_size": 48}
    recipe = StudentRecipe(**sizes)
    student = outline_of(teacher)
    count = f"{count_parameters(student):,}"
    said = f"student: got {count} parameters, expected fewer than the {count} of its teacher; lower its"
    with pytest.raises(ValueError, match=said):
        require_smaller(teacher, student, recipe)
    require_smaller(teacher, student, StudentRecipe(**sizes, allow_larger=True))
    with pytest.raises(ValueError, match=r"give a smaller one than mine with --student"):
        require_smaller(teacher, student, StudentRecipe(model="mine"))
    require_smaller(teacher, student, StudentRecipe(model="mine", allow_larger=True))


def test_a_recipe_of_an_earlier_run_with_a_model_of_its_own_is_taken():
    """It holds the sizes that were defaults, which say nothing."""
    StudentRecipe(model="mine", layers=6, hidden_size=256, heads=8, intermediate_size=1024)
    with pytest.raises(ValueError, match=r"student\.layers: got 5, expected nothing, as mine"):
        StudentRecipe(model="mine", layers=5)


def test_a_tokenizer_that_was_loaded_is_saved_as_it_was(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "made")
    save_tokenizer(load_tokenizer(str(tmp_path / "made")), tmp_path / "again")
    for path in (tmp_path / "made").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
