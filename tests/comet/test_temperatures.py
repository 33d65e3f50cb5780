import math

import pytest
import torch
from accuracy import relative_rms
from distillers import LANGUAGES, distiller_for, padded_batch, rows_of_logits

from comet import temperatures
from comet.factored_logits import FactoredLogits
from comet.recipe import ObjectiveRecipe
from comet.temperatures import (
    Temperature,
    adapted,
    sampled_tokens,
    scheduled,
    strength,
    temperature_slope,
)


def softened_kl(teacher, student, temperature):
    """T² KL of every row, written out."""
    log_t = (teacher / temperature).log_softmax(-1)
    log_s = (student / temperature).log_softmax(-1)
    squared = (
        temperature.flatten() ** 2 if isinstance(temperature, torch.Tensor) else temperature**2
    )
    return squared * (log_t.exp() * (log_t - log_s)).sum(-1)


def term_and_expected(recipe, temperature_of, step=(0, 1)):
    """A distiller's KL and mean temperature, and the same written out with these temperatures `[N]`."""
    distiller, batch = distiller_for("xlm-r", recipe=recipe), padded_batch()
    distiller.set_progress(*step)
    teacher, student = rows_of_logits(distiller, batch, batch.kd_positions)
    temperature = temperature_of(batch, teacher)
    expected = softened_kl(teacher, student, temperature[:, None]).mean()
    found = distiller(batch).terms
    torch.testing.assert_close(found["kd"], expected.float())
    torch.testing.assert_close(found["temperature"], temperature.mean().float())


def test_each_language_has_its_own():
    recipe = ObjectiveRecipe(
        temperature_mode="language", language_temperatures=["hau=1.5", "yor=3"], temperature=2.5
    )
    term_and_expected(
        recipe, lambda batch, _: torch.tensor([1.5] * 9 + [2.5] * 5 + [3.0] * 12).double()
    )


@pytest.mark.parametrize(("step", "expected"), [(0, 4.0), (3, 2.5), (6, 1.0), (9, 1.0)])
def test_a_schedule_is_a_straight_line_to_the_last_step(step, expected):
    assert scheduled(4.0, 1.0, step, 7) == expected
    recipe = ObjectiveRecipe(temperature_mode="schedule", temperature=4.0, temperature_end=1.0)
    term_and_expected(recipe, lambda batch, _: torch.full((26,), expected).double(), (step, 7))


def test_one_step_is_at_the_start():
    assert scheduled(4.0, 1.0, 0, 1) == 4.0


def test_adaptive_goes_by_the_teachers_entropy_at_the_token():
    def written_out(batch, teacher):
        p = teacher.softmax(-1)
        return 3.0 - 2.0 * -(p * p.log()).sum(-1) / math.log(120)

    recipe = ObjectiveRecipe(temperature_mode="adaptive", temperature=3.0, temperature_end=1.0)
    term_and_expected(recipe, written_out)
    ends = adapted(3.0, 1.0, torch.tensor([0.0, math.log(120)]), 120)
    torch.testing.assert_close(ends, torch.tensor([3.0, 1.0]))


def test_learnt_starts_halfway_and_stays_between():
    recipe = ObjectiveRecipe(temperature_mode="learnt", temperature=1.0, temperature_end=4.0)
    term_and_expected(recipe, lambda batch, _: torch.full((26,), 2.5).double())
    temperature = Temperature(recipe, LANGUAGES)
    for raw, expected in ((-50.0, 1.0), (1.0, 1 + 3 / (1 + math.exp(-1))), (50.0, 4.0)):
        temperature.raw.data.fill_(raw)
        torch.testing.assert_close(temperature.learnt().detach(), torch.tensor(expected))


@pytest.mark.parametrize(("apart", "limit"), [(0.01, 1e-4), (0.1, 1e-5), (1.0, 1e-5), (30.0, 1e-5)])
def test_the_slope_is_the_derivative_that_autograd_finds(apart, limit):
    """Of logits as near as those of a student that has learnt, too, where the terms all but cancel."""
    torch.manual_seed(3)
    hidden, weight, bias = torch.randn(7, 5), torch.randn(50, 5) * 2, torch.randn(50)
    sides = [
        FactoredLogits(hidden, weight + apart * torch.randn(50, 5), bias + apart * torch.randn(50))
        for _ in range(2)
    ]
    student, teacher = (
        torch.nn.functional.linear(*(part.double() for part in side)) for side in sides
    )
    temperature = torch.full((7, 1), 1.7, dtype=torch.float64, requires_grad=True)
    softened_kl(teacher, student, temperature).sum().backward()
    expected = temperature.grad.flatten()
    found = temperature_slope(*sides, torch.tensor(1.7))
    assert found.dtype == torch.float32
    assert relative_rms(found, expected) <= limit


def test_slopes_in_pieces_are_the_same(monkeypatch):
    sides = [FactoredLogits(torch.randn(9, 5), torch.randn(50, 5), None) for _ in range(2)]
    whole = temperature_slope(*sides, torch.tensor(2.0))
    monkeypatch.setenv("COMET_LOGITS_BYTES", str(4 * 10 * 50 * 2))
    assert len(list(sides[0].pieces(copies=10))) == 5
    torch.testing.assert_close(temperature_slope(*sides, torch.tensor(2.0)), whole)


def gradient_of_raw(recipe, batch, step=(20, 100)):
    distiller = distiller_for("xlm-r", recipe=recipe)
    distiller.set_progress(*step)
    distiller(batch).total.backward()
    return distiller, distiller.temperature.raw.grad


def test_the_learnt_temperature_climbs_the_kl(monkeypatch):
    """With every token in the sample: α times −dL_kd/dθ, by autograd in float64."""
    monkeypatch.setattr(temperatures, "SAMPLED_COLUMNS", 1)
    recipe = ObjectiveRecipe(
        temperature_mode="learnt", temperature=1.0, temperature_end=4.0, alpha=0.3
    )
    batch = padded_batch(kd="masked")
    distiller, found = gradient_of_raw(recipe, batch)
    raw = torch.zeros((), dtype=torch.float64, requires_grad=True)
    temperature = 1 + 3 * torch.sigmoid(raw)
    logits = rows_of_logits(distiller, batch, batch.kd_positions)
    softened_kl(*logits, temperature.expand(len(logits[0]), 1)).mean().backward()
    assert relative_rms(found, -0.3 * raw.grad) <= 1e-3  # of tokens of both signs


def test_the_sample_is_right_on_average_over_steps(monkeypatch):
    """16 steps in a row see every column once."""
    recipe = ObjectiveRecipe(temperature_mode="learnt", temperature=1.0, temperature_end=4.0)
    batch = padded_batch()
    each = [gradient_of_raw(recipe, batch, (step, 100))[1] for step in range(20, 36)]
    monkeypatch.setattr(temperatures, "SAMPLED_COLUMNS", 1)
    whole = gradient_of_raw(recipe, batch, (20, 100))[1]
    terms = torch.stack(each)
    assert (terms.mean() - whole).abs() <= 1e-5 * terms.abs().mean()  # they are of both signs
    assert max(each) != min(each)


def test_sampled_tokens_are_matched_ones_of_those_columns():
    batch = padded_batch((30, 18, 40), kd="masked")
    for first in (0, 3, 15):
        places, matched = sampled_tokens(batch, first)
        found = batch.kd_positions[places[matched]].tolist()
        expected = [p for p in batch.kd_positions.tolist() if p % 40 % 16 == first]
        assert found == expected


def test_the_curriculum_rises_from_nothing_to_full_strength():
    assert strength(0, 240) == 0
    assert strength(5, 240) == pytest.approx(0.5)
    assert strength(10, 240) == strength(200, 240) == 1
    recipe = ObjectiveRecipe(temperature_mode="learnt", temperature=1.0, temperature_end=4.0)
    assert gradient_of_raw(recipe, padded_batch(), (0, 100))[1] == 0


def test_the_student_gets_no_gradient_through_the_temperature():
    """The same gradients as at a constant temperature of that value."""
    batch = padded_batch()
    learnt = ObjectiveRecipe(temperature_mode="learnt", temperature=1.0, temperature_end=4.0)
    distiller, _ = gradient_of_raw(learnt, batch)
    constant = distiller_for("xlm-r", recipe=ObjectiveRecipe(temperature=2.5))
    constant(batch).total.backward()
    ours, expected = (
        torch.cat([value.grad.flatten() for value in one.student.parameters()])
        for one in (distiller, constant)
    )
    assert relative_rms(ours, expected) <= 1e-6


def test_a_language_that_is_not_there_is_refused():
    recipe = ObjectiveRecipe(temperature_mode="language", language_temperatures=["ibo=1.5"])
    with pytest.raises(
        ValueError, match="got ibo, expected languages of the corpus: hau, swa, yor"
    ):
        Temperature(recipe, LANGUAGES)


@pytest.mark.parametrize("mode", ["constant", "schedule", "learnt", "language"])
def test_only_a_learnt_temperature_is_saved(mode):
    more = {"schedule": {"temperature_end": 1.0}, "learnt": {"temperature_end": 1.0}}
    more["language"] = {"language_temperatures": ["hau=3"]}
    recipe = ObjectiveRecipe(temperature_mode=mode, **more.get(mode, {}))
    assert len(Temperature(recipe, LANGUAGES).state_dict()) == (mode == "learnt")
