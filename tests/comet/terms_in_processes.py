"""Program for several processes: every term of every objective, where one process holds all that a term counts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from distillers import LANGUAGES, distiller_for, padded_batch
from tiny import tiny_model
from tiny_tasks import batch_for, task_model
from torch import nn

import comet_kernels
import comet_kernels.reference
from comet.adapt import MaskedLanguageModel
from comet.agreement import measure_distiller
from comet.batch import Batch, TeacherOutputs, piece_of
from comet.finetune_recipe import TaskObjectiveRecipe
from comet.processes import make_accelerator, step_totals, summed
from comet.recipe import ObjectiveRecipe
from comet.tap import TappedEncoder
from comet.task_model import TaskEncoder
from comet.task_objective import TaskLearner, TaskTeacher, balanced_weights
from comet.top_logits import largest_logits
from comet.window import Window

DISTILLED = {
    "masked": {"kd_tokens": "masked", "mlm_weight": 0.7},
    "row": {"attention_reduction": "row", "projection": "lowrank", "projection_rank": 5},
    "kl": {"attention_loss": "kl", "kd_tokens": "masked"},
    "relation": {"attention_loss": "relation", "relation_heads": 8},
    "schedule": {"kd_tokens": "masked", "temperature_mode": "schedule", "temperature_end": 1.0},
    "adaptive": {"kd_tokens": "masked", "temperature_mode": "adaptive", "temperature_end": 1.0},
    "learnt": {"kd_tokens": "masked", "temperature_mode": "learnt", "temperature_end": 4.0},
}
LENGTHS = (9, 5, 12, 7)


def main(argv: Sequence[str]) -> None:
    """Compare the sum of all processes' shares with the loss, gradient and logged line of the whole."""
    accelerator = make_accelerator("float32")
    rank, processes = accelerator.process_index, accelerator.num_processes
    for name, module, batch in cases():
        whole = module(batch)
        whole.total.backward()
        gradients = {
            key: one.grad for key, one in module.named_parameters() if one.grad is not None
        }
        module.zero_grad()
        share = piece_of(batch, slice(rank, None, processes))
        found = module(share, step_totals([share], accelerator))
        found.total.backward()
        # of parameters that a share does not reach there is none
        ours = {
            key: torch.zeros_like(one) if one.grad is None else one.grad
            for key, one in module.named_parameters()
        }
        ours = summed({key: ours[key] for key in gradients}, accelerator)
        assert_close(ours, gradients, name)
        window, alone = Window(), Window()
        window.add(found, torch.tensor(1.0), share.tokens)
        languages = LANGUAGES[: found.by_language.shape[1]]
        logged = window.metrics(accelerator, languages)
        expected = {"loss": whole.total, **whole.terms, "tokens": torch.tensor(batch.tokens)}
        assert_close({key: torch.tensor(logged[key]) for key in expected}, expected, name)
        alone.add(whole, torch.tensor(1.0), batch.tokens)
        sums, counts = alone.state(accelerator)[0]["window/by_language"] / processes
        for language, total, count in zip(languages, sums, counts, strict=True):
            logged_here = [key for key in logged if key.endswith(f"/{language}")]
            assert len(logged_here) == int(count > 0), (name, language)
            if count > 0:
                value = torch.tensor(logged[logged_here[0]])
                assert_close({language: value}, {language: total / count}, name)
    evaluate(accelerator)
    print("same")


def assert_close(found, expected, name) -> None:
    """Same to a relative 1e-5 of the norm, with a tenth more room for a tensor near 0."""
    scale = max(value.float().norm() for value in expected.values())
    for key, value in expected.items():
        error = (found[key].float() - value.float()).norm()
        assert error <= 1e-5 * (value.float().norm() + 0.1 * scale), (name, key, error)


def cases() -> Iterator[tuple[str, nn.Module, Batch]]:
    """Modules with batches whose masked tokens, labels or soft labels are all in the first sequence."""
    for ops in (comet_kernels, comet_kernels.reference):
        for name, options in DISTILLED.items():
            recipe = ObjectiveRecipe(**options)
            distiller = distiller_for("xlm-r", ops, recipe)
            distiller.set_progress(17, 40)
            torch.manual_seed(1)
            yield name, distiller, in_the_first(padded_batch(LENGTHS, recipe.kd_tokens))
        recipe = ObjectiveRecipe(kd_tokens="masked")
        distiller = distiller_for("xlm-r", ops, recipe)
        batch = in_the_first(padded_batch(LENGTHS, "masked"))
        yield "top", distiller_of_logits(distiller), with_top(distiller, batch)
    torch.manual_seed(2)
    model = MaskedLanguageModel(TappedEncoder(tiny_model("bert")), len(LANGUAGES))
    yield "mlm", model, in_the_first(padded_batch(LENGTHS, "masked"))
    for kind in ("sequence", "token"):
        learner = task_learner(kind)
        yield f"labels of a {kind}", learner, labelled_in_the_first(batch_for(kind, 4))
    soft = torch.rand(4, 3).softmax(1)
    batch = replace(labelled_in_the_first(batch_for("sequence", 4)), soft_labels=soft)
    yield "soft labels", task_learner("sequence", floor_weight=0.6), batch


def in_the_first(batch: Batch) -> Batch:
    """A batch with its last sequences' masked tokens left as they are."""
    length = batch.input_ids.shape[1]
    labels = batch.labels.clone()
    labels[1:] = -100
    masked = batch.masked_positions[batch.masked_positions < length]
    matched = masked if len(batch.kd_positions) < batch.tokens else batch.kd_positions
    return replace(batch, labels=labels, masked_positions=masked, kd_positions=matched)


def labelled_in_the_first(batch: Batch) -> Batch:
    """A batch of which the first text or sentence alone has labels."""
    labels = batch.labels.clone()
    labels[1:] = -100
    return replace(
        batch, labels=labels, masked_positions=(labels.flatten() != -100).nonzero()[:, 0]
    )


def task_learner(kind: str, **options: float) -> TaskLearner:
    """A learner with balanced weights and a teacher."""
    recipe = TaskObjectiveRecipe(label_weight=0.7, alpha=0.4, **options)
    teacher = TaskTeacher(
        TaskEncoder(task_model("xlm-r", kind, seed=1), "last"), recipe, comet_kernels
    )
    student = TaskEncoder(task_model("xlm-r", kind, seed=2), "last")
    weights = balanced_weights([0, 0, 0, 1, 2, 2], 3)
    return TaskLearner(
        student, recipe, comet_kernels, class_weights=weights, teacher=teacher, languages=2
    )


class GivenTeacher:
    """A teacher whose outputs come with the batch, as from a cache."""

    def __init__(self, online) -> None:
        self.output_weight = online.output_weight

    def read(self, batch: Batch) -> TeacherOutputs:
        """What the batch holds."""
        assert batch.teacher is not None
        return batch.teacher


def distiller_of_logits(distiller):
    """The same distiller, taught by a cache of the largest logits."""
    distiller._teacher = (GivenTeacher(distiller.teacher),)
    return distiller


def with_top(distiller, batch: Batch) -> Batch:
    """The batch with the largest logits and the attention map of another teacher."""
    online = distiller_for("xlm-r", recipe=distiller.recipe).teacher
    said = online.read(batch)
    top = largest_logits(said.hidden, online.output_weight, online.output_bias, 8, 2.0)
    return replace(batch, teacher=TeacherOutputs(attention_map=said.attention_map, top=top))


def evaluate(accelerator) -> None:
    """Agreement on batches of which some processes have none that is masked."""
    recipe = ObjectiveRecipe(kd_tokens="masked")
    distiller = distiller_for("xlm-r", recipe=recipe)
    torch.manual_seed(3)
    first, *others = (padded_batch(LENGTHS, "masked") for _ in range(3))
    held_out = {"hau": [first], "swa": [in_the_first(one) for one in others]}
    found = measure_distiller(distiller, held_out, accelerator)
    single = make_alone()
    expected = measure_distiller(distiller, held_out, single)
    for language, one in expected.items():
        for name, value in vars(one).items():
            assert abs(getattr(found[language], name) - value) <= 1e-5 * abs(value), name


def make_alone():
    """What evaluation asks of an accelerator, of one process."""
    from types import SimpleNamespace

    real = make_accelerator("float32")
    return SimpleNamespace(
        process_index=0, num_processes=1, device=real.device, autocast=real.autocast
    )
