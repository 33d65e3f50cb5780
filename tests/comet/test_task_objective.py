import copy
from dataclasses import replace

import pytest
import torch
from accuracy import relative_rms
from tiny_tasks import batch_for, task_model
from torch.nn.functional import log_softmax

import comet_kernels
import comet_kernels.reference
from comet.batch import piece_of, total_counts
from comet.finetune_recipe import TaskObjectiveRecipe
from comet.task_model import TaskEncoder
from comet.task_objective import TaskLearner, TaskTeacher, balanced_weights

KINDS = ("sequence", "token")
RECIPE = TaskObjectiveRecipe(label_weight=0.7, alpha=0.4, temperature=3.0)
WEIGHTS = torch.tensor([0.5, 2.0, 1.25])


def learner_for(
    kind, recipe=RECIPE, ops=comet_kernels.reference, architecture="xlm-r", weights=WEIGHTS
):
    teacher = TaskTeacher(
        TaskEncoder(task_model(architecture, kind, seed=1, num_attention_heads=2), "last"),
        recipe,
        ops,
    )
    student = TaskEncoder(task_model(architecture, kind, seed=2), "last")
    return TaskLearner(student, recipe, ops, class_weights=weights, teacher=teacher, languages=2)


def reference(learner, batch):
    """Loss and gradients in float64, by transformers' own attention maps and the formulas."""

    def read(model, gradient):
        model = copy.deepcopy(model).double()
        model.set_attn_implementation("eager")
        mask = torch.ones_like(batch.input_ids) if batch.mask is None else batch.mask
        with torch.set_grad_enabled(gradient):
            found = model(
                input_ids=batch.input_ids, attention_mask=mask.long(), output_attentions=True
            )
        logits = found.logits
        if logits.ndim == 3:
            logits = logits.flatten(0, 1)[batch.masked_positions]
        return model, logits, found.attentions[-1].mean(1)

    recipe = learner.recipe
    model, ours, our_map = read(learner.encoder.model, True)
    _, theirs, their_map = read(learner.teacher.encoder.model, False)
    labels = batch.labels.flatten()[batch.masked_positions]
    weights = learner.class_weights.double()[labels]
    chosen = log_softmax(ours, -1)[torch.arange(len(labels)), labels]
    temperature = recipe.temperature
    logs, target = log_softmax(ours / temperature, -1), log_softmax(theirs / temperature, -1)
    kd = temperature**2 * (target.exp() * (target - logs)).sum(-1).mean()
    pairs = batch.mask[:, :, None] & batch.mask[:, None, :]
    attention = ((our_map - their_map) ** 2)[pairs].sum() / batch.mask.sum()
    terms = {"labels": -(weights * chosen).mean(), "kd": kd, "attention": attention}
    total = (
        recipe.label_weight * terms["labels"] + recipe.alpha * kd + (1 - recipe.alpha) * attention
    )
    total.backward()
    return total, terms, gradients_of(model)


def gradients_of(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "ops"),
    [
        ("xlm-r", comet_kernels.reference),
        ("xlm-r", comet_kernels),
        ("modernbert", comet_kernels.reference),
        ("modernbert", comet_kernels),
    ],
    ids=["xlm-r-plain", "xlm-r-fused", "modernbert-plain", "modernbert-fused"],
)
def test_loss_terms_and_every_gradient_are_those_of_the_formula_in_float64(kind, architecture, ops):
    learner, batch = learner_for(kind, ops=ops, architecture=architecture), batch_for(kind)
    total, terms, expected = reference(learner, batch)
    found = learner(batch)
    found.total.backward()
    assert relative_rms(found.total, total) < 1e-5
    assert found.terms.keys() == terms.keys()
    for name, term in terms.items():
        assert relative_rms(found.terms[name], term) < 1e-5, name
    gradients = gradients_of(learner.encoder.model)
    assert gradients.keys() == expected.keys()
    joined = [
        torch.cat([one[name].flatten() for name in expected]) for one in (gradients, expected)
    ]
    assert relative_rms(*joined) < 2e-5
    scale = joined[1].norm()
    for name, value in expected.items():
        assert (gradients[name] - value).norm() <= 1e-4 * (value.norm() + 1e-3 * scale), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["mse", "kl", "relation"])
def test_pieces_of_a_step_add_up_to_its_loss_and_gradient(kind, loss):
    heads = {"relation_heads": 8} if loss == "relation" else {}
    recipe = TaskObjectiveRecipe(attention_loss=loss, **heads)
    learner, batch = learner_for(kind, recipe), batch_for(kind, 9)
    whole = learner(batch)
    whole.total.backward()
    expected = {name: value.clone() for name, value in gradients_of(learner.encoder.model).items()}
    learner.zero_grad()
    pieces = [piece_of(batch, slice(number, None, 3)) for number in range(3)]
    totals = total_counts(pieces)
    shares = [learner(piece, totals) for piece in pieces]
    torch.stack([share.total for share in shares]).sum().backward()
    assert relative_rms(sum(share.total for share in shares), whole.total) < 1e-5
    for name, term in whole.terms.items():
        assert relative_rms(sum(share.terms[name] for share in shares), term) < 1e-5, name
    torch.testing.assert_close(sum(share.by_language for share in shares), whole.by_language)
    for name, value in gradients_of(learner.encoder.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_without_a_teacher_the_labels_alone_teach_and_the_loss_is_told_by_language():
    batch = batch_for("sequence")
    encoder = TaskEncoder(task_model("xlm-r", "sequence"))
    found = TaskLearner(encoder, TaskObjectiveRecipe(), comet_kernels.reference, languages=2)(batch)
    logits, attention = encoder(batch)
    assert attention is None
    assert found.terms == {}
    labels = batch.labels[:, 0]
    each = -log_softmax(logits, -1)[torch.arange(len(labels)), labels]
    torch.testing.assert_close(found.total, each.mean())
    for language in (0, 1):
        its = each[batch.languages == language]
        torch.testing.assert_close(
            found.by_language[:, language], torch.stack([its.sum(), torch.tensor(float(len(its)))])
        )


def test_labels_without_weight_are_no_term_and_the_kl_is_told_by_language():
    recipe = TaskObjectiveRecipe(label_weight=0.0, alpha=1.0, temperature=2.0)
    found = learner_for("sequence", recipe, weights=None)(batch_for("sequence"))
    assert list(found.terms) == ["kd"]
    torch.testing.assert_close(
        found.by_language[0].sum() / found.by_language[1].sum(), found.terms["kd"] / 4
    )


def soft_batch(count=9):
    soft = torch.rand(count, 3, generator=torch.Generator().manual_seed(4)).double()
    soft[0] = torch.tensor([0.0, 1.0, 0.0])  # a label that was never seen has no probability
    return replace(batch_for("sequence", count), soft_labels=(soft / soft.sum(1, True)).float())


def test_soft_labels_are_imitated_by_their_kl_beside_whatever_else_teaches():
    recipe = TaskObjectiveRecipe(label_weight=0.4, floor_weight=0.6)
    batch = soft_batch()
    encoder = TaskEncoder(task_model("xlm-r", "sequence"))
    found = TaskLearner(encoder, recipe, comet_kernels.reference, languages=2)(batch)
    logs = log_softmax(encoder(batch)[0].double(), -1)
    soft = batch.soft_labels.double()
    kl = (torch.xlogy(soft, soft) - soft * logs).sum(1).mean()
    labels = -logs[torch.arange(9), batch.labels[:, 0]].mean()
    assert list(found.terms) == ["labels", "floor"]
    assert relative_rms(found.terms["floor"], kl) < 1e-5
    assert relative_rms(found.total, 0.4 * labels + 0.6 * kl) < 1e-5
    with_teacher = learner_for("sequence", TaskObjectiveRecipe(floor_weight=0.6))(batch)
    assert list(with_teacher.terms) == ["labels", "floor", "kd", "attention"]
    alone = TaskObjectiveRecipe(label_weight=0.0, floor_weight=0.6)
    learner = TaskLearner(encoder, alone, comet_kernels.reference, languages=2)
    assert list(learner(batch).terms) == ["floor"]


def test_pieces_of_a_step_have_their_own_soft_labels():
    recipe = TaskObjectiveRecipe(floor_weight=0.6)
    learner, batch = learner_for("sequence", recipe), soft_batch()
    whole = learner(batch).terms["floor"]
    pieces = [piece_of(batch, slice(number, None, 3)) for number in range(3)]
    shares = [learner(piece, total_counts(pieces)).terms["floor"] for piece in pieces]
    assert relative_rms(sum(shares), whole) < 1e-5


def test_texts_without_a_label_are_imitated_on_and_counted_nowhere_else():
    """The loss of labelled and unlabelled texts together is what both say apart, each over its own number."""
    batch = soft_batch()
    hidden = batch.labels.clone()
    hidden[1::2] = -100
    mixed = replace(
        batch, labels=hidden, masked_positions=(hidden.flatten() != -100).nonzero()[:, 0]
    )
    recipe = TaskObjectiveRecipe(label_weight=0.4, floor_weight=0.6)
    encoder = TaskEncoder(task_model("xlm-r", "sequence"))
    learner = TaskLearner(
        encoder, recipe, comet_kernels.reference, class_weights=WEIGHTS, languages=2
    )
    found = learner(mixed)
    labelled = learner(piece_of(mixed, slice(0, None, 2)))
    torch.testing.assert_close(found.terms["labels"], labelled.terms["labels"])
    torch.testing.assert_close(found.terms["floor"], learner(batch).terms["floor"])
    torch.testing.assert_close(found.by_language, labelled.by_language)
    pieces = [piece_of(mixed, slice(number, None, 2)) for number in range(2)]
    shares = [learner(piece, total_counts(pieces)) for piece in pieces]
    torch.testing.assert_close(sum(share.total for share in shares), found.total)


def test_the_teacher_neither_learns_nor_is_saved():
    learner = learner_for("sequence")
    learner(batch_for("sequence")).total.backward()
    assert all(value.grad is None for value in learner.teacher.encoder.parameters())
    assert all(name.startswith("encoder.model.") for name in learner.state_dict())


def test_balanced_weights_favour_rare_labels_and_average_to_one():
    labels = [0] * 6 + [1] * 3 + [3] * 3
    weights = balanced_weights(labels, 4)
    torch.testing.assert_close(
        weights, torch.tensor([12 / (3 * 6), 12 / (3 * 3), 0.0, 12 / (3 * 3)])
    )
    torch.testing.assert_close(weights[torch.tensor(labels)].mean(), torch.tensor(1.0))
