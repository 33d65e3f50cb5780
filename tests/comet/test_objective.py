import pytest
import torch
from accuracy import relative_rms
from distillers import (
    LENGTHS,
    batch_of,
    distiller_for,
    losses_and_gradients,
    padded_batch,
    piece,
    rows_of_logits,
)
from tiny import tiny_model
from torch.nn.functional import cross_entropy, log_softmax

import comet_kernels
import comet_kernels.reference
from comet.batch import TeacherOutputs, total_counts
from comet.objective import Distiller, sums_by_language
from comet.projections import make_projection
from comet.recipe import ObjectiveRecipe
from comet.tap import TappedEncoder
from comet.teachers import OnlineTeacher, Parts, needed_parts
from comet.top_logits import largest_logits

OPTIONS = {
    "paper": {"attention_reduction": "mean", "projection": "kronecker"},
    "row": {"attention_reduction": "row", "projection": "lowrank", "projection_rank": 5},
    "kl": {"attention_loss": "kl"},
    "relation": {"attention_loss": "relation", "relation_heads": 8},
    "masked": {"kd_tokens": "masked", "mlm_weight": 0.7},
    "mlm": {"mlm_weight": 0.7, "alpha": 1.0},
    "language": {"temperature_mode": "language", "language_temperatures": ["hau=1.5", "yor=3"]},
    "schedule": {"temperature_mode": "schedule", "temperature_end": 1.0},
    "adaptive": {"temperature_mode": "adaptive", "temperature_end": 1.0},
    "learnt": {"temperature_mode": "learnt", "temperature_end": 4.0},
    "attention": {"alpha": 0.0},
}


def assert_same(found, expected, tolerance=1e-5):
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.isfinite(value).all(), name
        flat = [torch.cat([one[name].flatten() for name in wanted]) for one in (actual, wanted)]
        assert relative_rms(*flat) <= tolerance
        scale = flat[1].norm()
        for name, value in wanted.items():
            error = (actual[name] - value).norm() / (value.norm() + 1e-3 * scale)
            assert error <= 10 * tolerance, name


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
@pytest.mark.parametrize("option", ["paper", "kl", "adaptive"])
def test_fused_and_unfused_agree_on_loss_and_every_gradient(architecture, option):
    batch, recipe = padded_batch(), ObjectiveRecipe(**OPTIONS[option])
    plain, fused = (
        losses_and_gradients(distiller_for(architecture, ops, recipe), batch)
        for ops in (comet_kernels.reference, comet_kernels)
    )
    assert_same(fused, plain)


@pytest.mark.parametrize("reduction", ["mean", "row"])
def test_the_objective_is_the_papers(reduction):
    """Written out sequence by sequence, without padding."""
    recipe = ObjectiveRecipe(alpha=0.3, temperature=1.7, attention_reduction=reduction)
    distiller, batch = distiller_for("xlm-r", recipe=recipe), padded_batch()
    found = distiller(batch)
    divergence = squares = 0.0
    models = (distiller.teacher.encoder, distiller.student)
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            ids = batch.input_ids[row : row + 1, :length]
            t, s = (model(ids, None) for model in models)
            log_t, log_s = (
                log_softmax(model.logits(one.hidden) / 1.7, -1)
                for model, one in zip(models, (t, s), strict=True)
            )
            divergence += 1.7**2 * (log_t.exp() * (log_t - log_s)).sum()
            maps = [
                (one.query @ one.key.transpose(-1, -2) * one.scale).softmax(-1).mean(1)
                for one in (t, s)
            ]
            squares += (maps[0] - maps[1]).square().sum()
    kd = divergence / sum(LENGTHS)
    counted = sum(n * n for n in LENGTHS) if reduction == "mean" else sum(LENGTHS)
    attention = squares / counted
    torch.testing.assert_close(found.terms["kd"], kd)
    torch.testing.assert_close(found.terms["attention"], attention)
    torch.testing.assert_close(found.total, 0.3 * kd + 0.7 * attention)


def written_out(distiller, batch):
    """The loss of a recipe from every model's vectors, sequence by sequence, with gradient to the student."""
    recipe, total = distiller.recipe, 0.0
    for row, length in enumerate(LENGTHS):
        ids = batch.input_ids[row : row + 1, :length]
        with torch.no_grad():
            teacher = distiller.teacher.encoder(ids, None)
        sides = (teacher, distiller.student(ids, None))
        heads = (distiller.teacher.encoder, distiller.student)
        log_t, log_s = (
            log_softmax(model.logits(one.hidden) / recipe.temperature, -1)
            for model, one in zip(heads, sides, strict=True)
        )
        divergence = recipe.temperature**2 * (log_t.exp() * (log_t - log_s)).sum()
        total = total + recipe.alpha * divergence / batch.tokens
        share = (1 - recipe.alpha) / batch.tokens
        if recipe.attention_loss == "relation":
            total = total + share * relations(*sides, recipe.relation_heads)
            continue
        t, s = (
            (one.query @ one.key.transpose(-1, -2) * one.scale).softmax(-1).mean(1) for one in sides
        )
        if recipe.attention_loss == "kl":
            total = total + share * (t * (t / s).log()).sum()
        else:
            total = total + share * (t - s).square().sum()
    return total


def relations(teacher, student, heads):
    """Σ over queries, keys and values of KL between softmax(x xᵀ / √d), mean over relation heads."""
    total = 0.0
    for name in ("query", "key", "value"):
        log_t, log_s = (
            torch.stack(
                [
                    (x @ x.T / x.shape[1] ** 0.5).log_softmax(-1)
                    for x in getattr(one, name)[0].transpose(0, 1).flatten(1).chunk(heads, dim=1)
                ]
            )
            for one in (teacher, student)
        )
        total = total + (log_t.exp() * (log_t - log_s)).sum() / heads
    return total


@pytest.mark.parametrize("attention_loss", ["mse", "kl", "relation"])
def test_gradients_are_those_of_the_formula_written_out(attention_loss):
    more = {"relation_heads": 8} if attention_loss == "relation" else {}
    recipe = ObjectiveRecipe(alpha=0.2, temperature=1.7, attention_loss=attention_loss, **more)
    distiller, batch = distiller_for("xlm-r", recipe=recipe), padded_batch()
    found, gradients = losses_and_gradients(distiller, batch)
    distiller.zero_grad()
    expected = written_out(distiller, batch)
    expected.backward()
    torch.testing.assert_close(found["total"], expected.detach())
    wanted = {name: value.grad for name, value in distiller.named_parameters()}
    assert_same([gradients], [wanted])


def test_the_masked_tokens_themselves_are_a_term_of_their_own():
    distiller = distiller_for("xlm-r", recipe=ObjectiveRecipe(mlm_weight=0.7))
    batch = padded_batch()
    _, logits = rows_of_logits(distiller, batch, batch.masked_positions)
    expected = cross_entropy(logits, batch.labels.flatten()[batch.masked_positions])
    found = distiller(batch)
    torch.testing.assert_close(found.terms["mlm"], expected.float())
    total = 0.5 * found.terms["kd"] + 0.5 * found.terms["attention"] + 0.7 * found.terms["mlm"]
    torch.testing.assert_close(found.total, total)


@pytest.mark.parametrize("option", OPTIONS)
def test_pieces_of_a_step_add_up_to_the_step(option):
    """Pieces padded less than the whole, one of them without a masked token."""
    recipe = ObjectiveRecipe(**OPTIONS[option])
    distiller = distiller_for("xlm-r", recipe=recipe)
    distiller.set_progress(17, 40)
    lengths = (*LENGTHS, 7)
    batch = padded_batch(lengths, recipe.kd_tokens)
    pieces = [piece(batch, rows, lengths, recipe.kd_tokens) for rows in ([0, 2], [1], [3])]
    assert [len(one.masked_positions) > 0 for one in pieces] == [True, False, True]
    totals = total_counts([batch])
    whole = losses_and_gradients(distiller, batch)
    for some in (totals, type(totals)(*map(torch.tensor, totals))):
        assert_same(losses_and_gradients(distiller, *pieces, totals=some), whole)


@pytest.fixture(scope="module")
def _one_process(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("option", OPTIONS)
def test_ddp_takes_every_option(option):
    """A second step fails if a parameter that is not frozen got no gradient in the first, or got it twice."""
    recipe = ObjectiveRecipe(**OPTIONS[option])
    distiller, batch = distiller_for("bert", recipe=recipe), padded_batch(kd=recipe.kd_tokens)
    _, expected = losses_and_gradients(distiller, batch)
    distiller.zero_grad()
    wrapped = torch.nn.parallel.DistributedDataParallel(distiller)
    for _ in range(2):
        wrapped(batch, None).total.backward()
    found = {n: v.grad / 2 for n, v in distiller.named_parameters() if v.grad is not None}
    assert_same([found], [expected])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_parameter_that_is_not_frozen_gets_a_gradient_even_from_a_piece_without_tokens(
    option,
):
    """DDP waits for all of them, on every process."""
    recipe = ObjectiveRecipe(**OPTIONS[option])
    distiller = distiller_for("bert", recipe=recipe)
    ids, nothing = torch.randint(5, 120, (1, 4)), torch.zeros(1, 4, dtype=torch.bool)
    batch = batch_of(ids, [4], nothing, [0], recipe.kd_tokens)
    losses_and_gradients(distiller, batch)
    trained = {name for name, value in distiller.named_parameters() if value.requires_grad}
    given = {name for name, value in distiller.named_parameters() if value.grad is not None}
    assert trained == given
    frozen = {name for name, _ in distiller.named_parameters()} - trained
    assert bool(frozen) == (option == "attention")
    assert all(".layer.1." in name or name.startswith("student.model.cls") for name in frozen)


@pytest.mark.parametrize("ops", [comet_kernels, comet_kernels.reference])
def test_padding_changes_nothing(ops):
    """The same sequences, padded further, give the same loss."""
    recipe = ObjectiveRecipe(projection="kronecker", mlm_weight=1.0)
    distiller, batch = distiller_for("bert", ops, recipe), padded_batch()
    ids, labels = (
        torch.nn.functional.pad(one, (0, 3), value=fill)
        for one, fill in ((batch.input_ids, 1), (batch.labels, -100))
    )
    wider = batch_of(ids, list(LENGTHS), labels != -100, [0, 1, 2])
    wider.labels.copy_(labels)
    torch.testing.assert_close(distiller(wider), distiller(batch))


def test_only_student_projection_and_learnt_temperature_are_trained():
    recipe = ObjectiveRecipe(projection="kronecker", **OPTIONS["learnt"])
    distiller = distiller_for("bert", recipe=recipe)
    teacher = distiller.teacher.encoder
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    _, gradients = losses_and_gradients(distiller, padded_batch())
    assert {name.split(".")[0] for name in gradients} == {"student", "projection", "temperature"}
    for name, value in teacher.named_parameters():
        assert not value.requires_grad
        assert value.grad is None
        assert torch.equal(value, before[name])


def test_kd_on_masked_tokens_only_looks_at_those():
    distiller, batch = distiller_for("bert"), padded_batch(kd="masked")
    assert 0 < len(batch.kd_positions) < batch.tokens
    teacher, student = rows_of_logits(distiller, batch, batch.kd_positions)
    log_t, log_s = log_softmax(teacher / 2, -1), log_softmax(student / 2, -1)
    expected = 4 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    torch.testing.assert_close(distiller(batch).terms["kd"], expected.float())


def test_kl_is_summed_by_language():
    distiller, batch = distiller_for("bert"), padded_batch((9, 5, 12, 4))
    teacher, student = rows_of_logits(distiller, batch, batch.kd_positions)
    log_t, log_s = log_softmax(teacher / 2, -1), log_softmax(student / 2, -1)
    kl = (log_t.exp() * (log_t - log_s)).sum(-1).split([9, 5, 12, 4])
    expected = torch.stack([kl[0].sum() + kl[3].sum(), kl[1].sum(), kl[2].sum()])
    found = distiller(batch).by_language
    torch.testing.assert_close(found[0], expected.float())
    assert found[1].tolist() == [13, 5, 12]
    assert sums_by_language(torch.zeros(30), batch, 3)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("option", "hidden", "attention_map", "relation", "terms"),
    [
        ("paper", True, True, False, {"kd", "attention"}),
        ("relation", True, False, True, {"kd", "attention"}),
        ("attention", False, True, False, {"attention"}),
        ("mlm", True, False, False, {"kd", "mlm"}),
        ("schedule", True, True, False, {"kd", "attention", "temperature"}),
    ],
)
def test_what_no_weight_asks_for_is_not_computed(option, hidden, attention_map, relation, terms):
    recipe = ObjectiveRecipe(**OPTIONS[option])
    distiller, batch = distiller_for("bert", recipe=recipe), padded_batch()
    read = distiller.teacher.read(batch)
    assert (read.hidden is not None) == hidden
    assert (read.attention_map is not None) == attention_map
    assert (read.relation is not None) == relation
    found = distiller(batch)
    assert found.terms.keys() == terms
    assert (found.by_language is not None) == hidden


class FromTop:
    """A teacher that kept its largest logits, all of them here, so that nothing is lost."""

    def __init__(self, online, temperature):
        self.online, self.temperature = online, temperature
        self.output_weight, self.output_bias = online.output_weight, online.output_bias

    def read(self, batch):
        said = self.online.read(batch)
        head = self.output_weight, self.output_bias
        top = largest_logits(said.hidden, *head, len(head[0]), self.temperature)
        return TeacherOutputs(attention_map=said.attention_map, top=top)


def test_a_teachers_largest_logits_stand_for_its_hidden_states():
    distiller, batch = distiller_for("bert"), padded_batch()
    expected = losses_and_gradients(distiller, batch)
    distiller._teacher = (FromTop(distiller.teacher, 2.0),)
    assert_same(losses_and_gradients(distiller, batch), expected)


def test_largest_logits_are_refused_at_a_temperature_of_their_own():
    distiller = distiller_for("bert", recipe=ObjectiveRecipe(**OPTIONS["adaptive"]))
    distiller._teacher = (FromTop(distiller.teacher, 2.0),)
    with pytest.raises(ValueError, match="temperature_mode: got adaptive, expected constant"):
        distiller(padded_batch())


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match="vocabulary has 130 entries, the teacher's 120"):
        distiller_for("bert", vocabulary=(120, 130))


def test_relation_heads_that_do_not_divide_a_width_are_refused_at_the_start():
    recipe = ObjectiveRecipe(attention_loss="relation", relation_heads=16)
    with pytest.raises(
        ValueError, match="relation_heads: got 16, expected a divisor of the student's width 24"
    ):
        distiller_for("bert", recipe=recipe)
    recipe = ObjectiveRecipe(attention_loss="relation", relation_heads=3)
    encoder = TappedEncoder(tiny_model("bert"))
    with pytest.raises(
        ValueError, match="relation_heads: got 3, expected a divisor of the teacher's width 32"
    ):
        OnlineTeacher(encoder, comet_kernels, needed_parts(recipe))


def test_a_teacher_gives_hidden_states_and_map_by_default():
    assert Parts() == needed_parts(ObjectiveRecipe())
    student = TappedEncoder(tiny_model("bert"))
    teacher = OnlineTeacher(TappedEncoder(tiny_model("bert")), comet_kernels)
    recipe = ObjectiveRecipe()
    projection = make_projection(recipe, 8)
    found = Distiller(teacher, student, projection, recipe, comet_kernels, ("hau", "swa", "yor"))
    assert found(padded_batch()).terms.keys() == {"kd", "attention"}
