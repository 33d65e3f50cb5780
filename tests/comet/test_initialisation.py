"""Students that start from their teacher: exact where nothing is smaller, close where the teacher has room to spare."""

import json
import shutil

import pytest
import torch
from distillers import padded_batch
from tiny import TINY_RUN, TINY_STUDENT, tiny_model
from tiny_tasks import recipe_for, write_sentiment
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, ElectraConfig, GPT2Config

from comet.anatomy import anatomy_of
from comet.cache_teacher import main as cache_teacher
from comet.configuration import read_recipe
from comet.distill import main as distill
from comet.finetune import finetune
from comet.initialisation import make_started, start_from_teacher
from comet.initialise import main as initialise
from comet.recipe import DistillRecipe, StudentRecipe
from comet.reduction import basis_of, reduced_product, reduced_writer, refit, rotary_product
from comet.student_recipe import Sizes
from comet.students import chosen_layers, make_student, settled
from comet.tap import TappedEncoder, usable_positions
from comet.trim import main as trim

ARCHITECTURES = ["xlm-r", "bert", "electra", "modernbert"]
FULL = {"layers": 4, "hidden_size": 32, "heads": 4, "intermediate_size": 48, "dropout": 0.0}


def recipe_of(**changes):
    return StudentRecipe(**{**FULL, "initial": "teacher", **changes})


def teacher_of(architecture, **sizes):
    """A teacher whose norms scale and whose layers shift, so that leaving either out is seen."""
    teacher = tiny_model(architecture, **sizes)
    for module in teacher.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.2)
    return teacher


@pytest.fixture
def batches():
    return [padded_batch() for _ in range(12)]


def started(teacher, recipe, batches):
    student = make_student(teacher.config, recipe).eval()
    start_from_teacher(student, teacher, recipe, batches)
    return student


@torch.no_grad()
def logits(model, batch):
    return model(input_ids=batch.input_ids, attention_mask=batch.mask).logits[batch.mask].double()


def difference(student, teacher, batch):
    """Root mean square of the logits' difference, relative to the teacher's spread over the vocabulary."""
    ours, theirs = (
        one - one.mean(-1, keepdim=True) for one in (logits(student, batch), logits(teacher, batch))
    )
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_of_the_teachers_size_is_the_teacher(architecture, batches):
    teacher = teacher_of(architecture)
    assert difference(started(teacher, recipe_of(), batches), teacher, padded_batch()) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_of_fewer_layers_is_the_teacher_of_those_layers(architecture, batches):
    teacher = teacher_of(architecture)
    student = started(teacher, recipe_of(layers=2, initial_layers=[0, 2]), batches)
    base = getattr(teacher, teacher.base_model_prefix)
    layers = base.layers if architecture == "modernbert" else base.encoder.layer
    del layers[3], layers[1]
    if architecture == "modernbert":
        assert student.config.layer_types == [teacher.config.layer_types[n] for n in (0, 2)]
    assert difference(student, teacher, padded_batch()) < 1e-4


def widened(small, large):
    """Weights of `small` in `large`, which is twice as wide and does the same: its stream is [h, h].

    Where it has twice the heads, the second half of them says nothing; where its heads are twice as wide, every second
    number of them is 0. Of the neurons the second half says nothing.
    """
    ours, theirs = anatomy_of(large), anatomy_of(small)
    more = ours.heads // theirs.heads
    used = torch.arange(16)
    if more == 1:  # numbers of a head that turn with the frequencies that the small one has
        used = torch.arange(4).repeat_interleave(4) * 8 + torch.tensor([0, 2, 4, 6]).repeat(4)
    with torch.no_grad():
        for part, own in _parts(ours, theirs):
            rows, columns = (part.weight.shape[n] // own.weight.shape[n] for n in (0, 1))
            weight = own.weight.repeat(rows, columns) / columns
            part.write(weight, None if own.bias is None else own.bias.repeat(rows))
        for layer, own in zip(ours.layers, theirs.layers, strict=True):
            for name in ("query", "key", "value"):
                part, before = getattr(layer, name), getattr(own, name)
                part.write(torch.randn_like(part.weight) * 0.2 * (more - 1))
                grown = 2**0.5 if name == "query" and more == 1 else 1.0
                part.weight[used] = before.weight.repeat(1, 2) / 2 * grown
                if before.bias is not None:
                    part.bias[used] = before.bias * grown
            for part in layer.up:
                part.weight[24:].normal_(std=0.2)
            for part, before, kept in (
                (layer.output, own.output, used),
                (layer.down, own.down, torch.arange(24)),
            ):
                part.weight.zero_()
                part.weight[:, kept] = before.weight.repeat(2, 1)
        wider = ours.tokens.shape[1] // theirs.tokens.shape[1]
        for name in ("positions", "types"):
            table = getattr(ours, name)
            if table is not None:
                table.copy_(getattr(theirs, name).repeat(1, wider))
        # where embeddings are wider, logits are twice what they were, and the last norm halves what they are made of
        ours.tokens.copy_(theirs.tokens.repeat(1, wider))
        ours.bias.copy_(theirs.bias)
        ours.head_norm.weight.copy_(theirs.head_norm.weight.repeat(wider) / wider)
        if ours.project is not None:  # it makes both halves of the stream
            ours.project.write(torch.eye(16).repeat(2, 1))
    return large


def _parts(ours, theirs):
    yield ours.head, theirs.head
    for large, small in zip(ours.layers, theirs.layers, strict=True):
        for name in ("query", "key", "value", "output", "down"):
            yield getattr(large, name), getattr(small, name)
        yield from zip(large.up, small.up, strict=True)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_follows_a_teacher_that_uses_half_its_width(architecture, heads):
    """All but what the GELU of its head bends, which a matrix cannot.

    Of the ELECTRA, embeddings are as wide as the student's layers: it alone has no projection behind them.
    """
    narrow = {"hidden_size": 16, "intermediate_size": 24}
    small = tiny_model(architecture, num_attention_heads=heads, **narrow)
    for module in small.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    teacher = widened(small, tiny_model(architecture))
    batch = padded_batch()
    assert difference(teacher, small, batch) < 1e-4
    recipe = recipe_of(heads=heads, **narrow)
    student = started(teacher, recipe, [padded_batch((40, 40)) for _ in range(20)])
    ours, theirs = (last_hidden(model, batch) for model in (student, teacher))
    # the same products of any two tokens, whatever the basis
    assert relative(ours @ ours.T, theirs @ theirs.T) < 0.01
    random = make_student(teacher.config, recipe).eval()
    assert difference(student, teacher, batch) < 0.6 * difference(random, teacher, batch)


@torch.no_grad()
def last_hidden(model, batch):
    base = getattr(model, model.base_model_prefix)
    hidden = base(input_ids=batch.input_ids, attention_mask=batch.mask).last_hidden_state
    return hidden[batch.mask].double()


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_smaller_in_every_way_it_is_nearer_than_random_weights(architecture, batches):
    teacher = teacher_of(architecture)
    shape = {
        "hidden_size": 24,
        "heads": 3 if architecture == "bert" else 4,
        "intermediate_size": 40,
    }
    student = started(teacher, recipe_of(**shape), batches)
    random = make_student(teacher.config, recipe_of(**shape)).eval()
    x = padded_batch()
    kl = [
        nn.functional.kl_div(
            logits(model, x).log_softmax(-1), logits(teacher, x).log_softmax(-1),
            log_target=True, reduction="batchmean",
        )
        for model in (student, random)
    ]  # fmt: skip
    assert kl[0] < 0.9 * kl[1]


@pytest.mark.parametrize("initial", ["random", "embeddings", "teacher"])
def test_a_factorized_student_is_one_that_everybody_can_load(initial, batches, tmp_path):
    teacher = teacher_of("xlm-r")
    recipe = recipe_of(layers=2, hidden_size=16, heads=2, embedding_size=8, initial=initial)
    student = make_student(teacher.config, recipe).eval()
    if initial != "random":
        start_from_teacher(student, teacher, recipe, batches)
    assert isinstance(student.config, ElectraConfig)
    assert usable_positions(student) == usable_positions(teacher)
    assert TappedEncoder(student).output_weight.shape == (120, 8)
    student = make_student(teacher.config, recipe).eval()
    student.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    again_base = AutoModel.from_pretrained(tmp_path)
    assert again_base.get_input_embeddings().weight.shape == (120, 8)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    x = padded_batch()
    assert torch.equal(logits(student, x), logits(again, x))


def test_a_factorized_student_of_full_width_is_the_teacher_but_for_its_embeddings(batches):
    """Embeddings of 31 of 32 dimensions: LayerNorm takes one away, so that a teacher of centred ones loses nothing."""
    teacher = teacher_of("xlm-r")
    recipe = recipe_of(embedding_size=31)
    student = started(teacher, recipe, batches)
    random = make_student(teacher.config, recipe).eval()
    x = padded_batch()
    assert difference(student, teacher, x) < 0.7 * difference(random, teacher, x)


def test_embeddings_alone_leave_the_rest_random(batches):
    teacher = teacher_of("modernbert")
    recipe = recipe_of(hidden_size=16, heads=2, embedding_size=8, initial="embeddings")
    torch.manual_seed(3)
    untouched = make_student(teacher.config, recipe)
    torch.manual_seed(3)
    student = started(teacher, recipe, batches)
    changed = {
        name
        for (name, one), other in zip(
            student.named_parameters(), untouched.parameters(), strict=True
        )
        if not torch.equal(one, other)
    }
    assert changed == {"electra.embeddings.word_embeddings.weight", "generator_lm_head.bias"}


@pytest.mark.parametrize("size", [2, 5, 11])
def test_a_basis_keeps_the_direction_of_ones_and_what_there_is(size):
    x = torch.randn(50, size - 1).double() @ torch.randn(size - 1, 12).double()
    x = x - x.mean(1, keepdim=True)
    basis = basis_of(x.T @ x, size)
    assert torch.allclose(basis.T @ basis, torch.eye(size).double())
    ones = torch.ones(12).double() / 12**0.5
    assert torch.allclose(basis.T @ ones, torch.ones(size).double() / size**0.5)
    assert torch.allclose(x @ basis @ basis.T, x)


def test_products_of_low_rank_are_kept():
    mixing = torch.randn(2, 6, 3).double()
    query, key = (torch.randn(40, 3).double() @ one.T for one in mixing)
    ours, theirs = reduced_product(query.T @ query, key.T @ key, 3)
    assert torch.allclose((query @ ours.T) @ (key @ theirs.T).T, query @ key.T)
    maps, writer = reduced_writer(mixing[1].T, query.T @ query, 3)
    assert torch.allclose(query @ maps.T @ writer.T, query @ mixing[1])
    assert torch.allclose(maps @ maps.T, torch.eye(3).double())


def rotated(x, frequencies, place):
    half = x.shape[1] // 2
    turns = torch.polar(torch.ones(half).double(), frequencies * place)
    turned = torch.complex(x[:, :half], x[:, half:]) * turns
    return torch.cat([turned.real, turned.imag], 1)


@pytest.mark.parametrize("kind", ["every second", "two of one"])
def test_rotated_products_keep_what_the_students_frequencies_can_say(kind):
    """At any distance: pairs that turn as the student's do, and two that turn alike and say the same, turned."""
    theirs = 100.0 ** -(torch.arange(4).double() / 4)
    ours = theirs[::2]
    query, key = torch.randn(2, 30, 8).double()
    if kind == "every second":
        query[:, [1, 3, 5, 7]] = 0
    else:
        theirs = ours.repeat_interleave(2)
        for first in (0, 2):
            query[:, first + 1] = 0.6 * query[:, first] - 0.8 * query[:, first + 4]
            query[:, first + 5] = 0.8 * query[:, first] + 0.6 * query[:, first + 4]
    maps = rotary_product(query.T @ query, key.T @ key, ours, theirs)
    for place in (0, 3, 17):
        whole = (rotated(query, theirs, place) * key).sum(1)
        reduced = (rotated(query @ maps[0].T, ours, place) * (key @ maps[1].T)).sum(1)
        assert torch.allclose(whole, reduced)


def test_a_refit_finds_what_a_dropped_number_said_through_the_others():
    x = torch.randn(200, 3).double()
    x = torch.cat([x, 2 * x[:, :1] + 0.5], 1)
    joint = torch.cat([x, torch.ones(200, 1)], 1)
    target = torch.randn(2, 4).double()
    kept = torch.eye(4).double()[:3]
    found = refit(target, target[:, :3], kept, joint.T @ joint / 200, intercept=True)
    assert torch.allclose(x @ target.T, x[:, :3] @ found.weight.T + found.bias, atol=0.05)


@pytest.mark.parametrize(
    ("teacher", "student", "layers"),
    [(24, 6, (0, 5, 9, 14, 18, 23)), (6, 3, (0, 3, 5)), (6, 1, (5,))],
)
def test_layers_are_spread_from_the_first_to_the_last(teacher, student, layers):
    config = tiny_model("bert", num_hidden_layers=1).config
    config.num_hidden_layers = teacher
    assert chosen_layers(config, recipe_of(layers=student)) == layers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 5}, "student.layers: got 5, expected at most the teacher's 4"),
        ({"hidden_size": 64}, "student.hidden_size: got 64, expected at most the teacher's 32"),
        ({"heads": 8}, "student.heads: got 8, expected at most the teacher's 4"),
        ({"heads": 2}, "student.heads: got 2 of 16 numbers each, .* give 4 heads or more"),
        ({"intermediate_size": 49}, "student.intermediate_size: got 49"),
        ({"layers": 2, "initial_layers": [1, 4]}, "layers of the teacher, 0 to 3"),
    ],
)
def test_a_student_that_cannot_start_from_its_teacher_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        make_student(tiny_model("bert").config, recipe_of(**changes))


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match=r"student.initial: got teacher with a gpt2 teacher"):
        make_student(GPT2Config(), recipe_of())
    with pytest.raises(ValueError, match=r"modernbert teacher, expected embeddings"):
        make_student(tiny_model("modernbert").config, recipe_of(embedding_size=8))


@pytest.mark.parametrize(
    ("architecture", "changes", "initial", "hindrance"),
    [
        ("bert", {}, "teacher", None),
        ("modernbert", {}, "teacher", None),
        ("bert", {"heads": 8}, "embeddings", "student.heads: got 8"),
        ("modernbert", {"embedding_size": 8}, "random", "whose layers are of another kind"),
        ("bert", {"embedding_size": 8}, "teacher", None),
        ("bert", {"hidden_size": 64}, "random", "student.hidden_size: got 64"),
        ("bert", {"layers": 2, "initial_layers": [1, 3]}, "teacher", None),
    ],
)
def test_auto_takes_as_much_of_the_teacher_as_fits_and_says_what_does_not(
    architecture, changes, initial, hindrance
):
    config = tiny_model(architecture).config
    start = settled(config, recipe_of(**{"initial": "auto", **changes}))
    assert start.recipe.initial == initial
    assert (hindrance or "") in start.describe(config)
    assert (hindrance is None) == (start.hindrance is None)


def test_auto_does_not_pass_over_layers_that_were_asked_for():
    config = tiny_model("bert").config
    with pytest.raises(ValueError, match="layers of the teacher, 0 to 3"):
        settled(config, recipe_of(initial="auto", layers=2, initial_layers=[1, 4]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"initial_layers": [0, 1]}, "as many as student.layers"),
        ({"layers": 2, "initial_layers": [1, 0]}, "in ascending order"),
        ({"layers": 2, "initial_layers": [0, 1], "initial": "random"}, "student.initial teacher"),
        ({"embedding_size": 32}, "below student.hidden_size"),
        ({"embedding_size": 0}, "1 or more"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        recipe_of(**changes)


def agreement(folder):
    return json.loads((folder / "agreement.json").read_text())


def test_a_factorized_student_is_distilled_trimmed_and_fine_tuned(
    teacher_folder, corpus_folder, tmp_path
):
    run = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    run += ["--student.embedding_size", "8", "--student.initial", "teacher"]
    distill([*run, "--fused", "--steps", "3", "--output", str(tmp_path / "run")])
    folder = str(tmp_path / "run" / "student")
    assert type(AutoModelForMaskedLM.from_pretrained(folder)).__name__ == "ElectraForMaskedLM"
    trim(
        [
            "--model", folder, "--corpus", str(corpus_folder), "--size", "250",
            "--output", str(tmp_path / "trimmed"),
        ]
    )  # fmt: skip
    assert json.loads((tmp_path / "trimmed" / "trim.json").read_text())["proof"]["identical"]
    recipe = recipe_for(tmp_path / "trimmed", write_sentiment(tmp_path / "data"), epochs=1)
    finetune(recipe, tmp_path / "tuned")
    assert list((tmp_path / "tuned").rglob("model.safetensors"))


def test_a_run_from_a_cache_starts_as_one_beside_the_teacher(
    teacher_folder, corpus_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("comet.moments.TOKENS", 200)
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    text = ["--teacher", str(teacher), "--corpus", str(corpus_folder), *TINY_RUN]
    cache_teacher([*text, "--batches", "4", "--output", str(tmp_path / "cache")])
    own = [*TINY_STUDENT, "--student.initial", "teacher"]
    cached = ["--teacher-cache", str(tmp_path / "cache"), *own]
    capsys.readouterr()
    initialise([*text, "--student.initial", "teacher", "--output", str(tmp_path / "start")])
    beside = capsys.readouterr().out
    assert (tmp_path / "start" / "config.json").is_file()
    initialise([*cached, "--output", str(tmp_path / "cached")])
    weights = [
        AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("start", "cached")
    ]
    assert "before training" in beside
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    shutil.rmtree(teacher)
    with pytest.raises(ValueError, match=r"teacher.cache, which holds no weights of the teacher"):
        initialise(cached)


@pytest.mark.parametrize("initial", ["auto", "random"])
@pytest.mark.parametrize("embedding_size", [None, 8])
@pytest.mark.parametrize("padding", [1, 3])
def test_text_longer_than_the_positions_is_refused_before_the_teacher_runs(
    initial, embedding_size, padding
):
    """Positions are counted from behind the padding's number, so that 66 of them are 64 or 62."""
    teacher = tiny_model("xlm-r").config
    teacher.pad_token_id = padding
    recipe = StudentRecipe(initial=initial, embedding_size=embedding_size)
    longest = 66 - padding - 1

    def run(length):
        make_started(teacher, recipe, lambda: teacher_of("xlm-r"), _stop, length)

    said = (
        f"corpus.max_length: got {longest + 1}, but the teacher has positions for {longest} tokens"
    )
    with pytest.raises(ValueError, match=said):
        run(longest + 1)
    if initial == "random":
        run(longest)
    else:
        with pytest.raises(_StoppedError):
            run(longest)


class _StoppedError(Exception):
    pass


def _stop():
    raise _StoppedError


@pytest.mark.parametrize("command", [distill, initialise])
def test_commands_refuse_text_longer_than_the_positions(
    command, teacher_folder, corpus_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("comet.initialisation.measure_moments", _stop)
    run = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    run += ["--student.initial", "auto", "--output", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"max_length: got 65, .* teacher has positions for 64"):
        command([*run, "--corpus.max_length", "65"])
    assert not (tmp_path / "run").exists()


def test_a_named_student_that_is_no_smaller_or_has_fewer_positions_is_refused(
    teacher_folder, corpus_folder, tmp_path
):
    text = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN[10:]]
    with pytest.raises(ValueError, match=r"student: got .* give a smaller one than"):
        initialise([*text, "--student", str(teacher_folder)])
    initialise([*text, "--student", str(teacher_folder), "--student.allow_larger"])
    short = tmp_path / "short"
    shutil.copytree(teacher_folder, short)
    tiny_model("xlm-r", 300, hidden_size=16, max_position_embeddings=22).save_pretrained(short)
    with pytest.raises(ValueError, match=r"max_length: got 24, but the student has positions"):
        initialise([*text, "--student", str(short)])


def test_the_command_writes_over_nothing(teacher_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output: .* exists"):
        initialise(["--teacher", str(teacher_folder), "--corpus", "toy", "--output", str(tmp_path)])


def test_from_a_cache_whose_teacher_is_gone_auto_starts_at_random_and_says_so(
    teacher_folder, corpus_folder, tmp_path, capsys
):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    run = [one for one in TINY_RUN if one not in ("--student.initial", "random")]
    text = ["--teacher", str(teacher), "--corpus", str(corpus_folder), *run]
    cache_teacher([*text, "--batches", "4", "--output", str(tmp_path / "cache")])
    shutil.rmtree(teacher)
    capsys.readouterr()
    distill(
        ["--teacher-cache", str(tmp_path / "cache"), "--steps", "2",
         "--optimisation.warmup_steps", "1", "--output", str(tmp_path / "run")]
    )  # fmt: skip
    assert "start    random weights, for want of more: student.initial" in capsys.readouterr().out
    student = read_recipe(DistillRecipe, str(tmp_path / "run" / "recipe.yaml"))["student"]
    assert student["initial"] == "random"
    assert [student[name] for name in Sizes._fields] == [2, 16, 2, 24]
