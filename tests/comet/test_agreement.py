import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from torch.nn.functional import kl_div, log_softmax

import comet_kernels
from comet import agreement
from comet.agreement import Agreement, measure, measure_distiller, table
from comet.batch import Batch, TeacherOutputs
from comet.objective import Distiller
from comet.objective_recipe import ObjectiveRecipe
from comet.projections import Identity
from comet.tap import TappedEncoder
from comet.teachers import OnlineTeacher, needed_parts
from comet.top_logits import largest_logits

VOCABULARY = 120


@pytest.fixture
def models():
    shapes = ({}, {"num_hidden_layers": 2})
    return [TappedEncoder(tiny_model("xlm-r", VOCABULARY, **shape)).eval() for shape in shapes]


def batch_of(*lengths: int, masked: float = 0.4) -> Batch:
    """Random pieces; those chosen for masking are matched, all real ones where there are none."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.randint(5, VOCABULARY, real.shape)
    chosen = (torch.rand(real.shape) < masked) & real
    positions = torch.nonzero(chosen.flatten())[:, 0]
    return Batch(
        input_ids=labels.masked_fill(chosen, 4).masked_fill(~real, 1),
        mask=None if real.all() else real,
        kd_positions=positions if masked else torch.nonzero(real.flatten())[:, 0],
        masked_positions=positions,
        labels=labels.masked_fill(~chosen, -100),
        languages=torch.zeros(len(lengths), dtype=torch.int64),
        tokens=sum(lengths),
        squared_lengths=sum(n * n for n in lengths),
    )


@pytest.fixture
def batches():
    return {"hau": [batch_of(9, 6, 4), batch_of(7, 7)], "swa": [batch_of(5, 3, 2), batch_of(8)]}


def compare(teacher, student, batches, accelerator=None):
    online = OnlineTeacher(teacher, comet_kernels)
    return measure(online, student, batches, comet_kernels, accelerator or Accelerator())


def test_a_model_agrees_with_itself(models, batches):
    found = compare(models[0], models[0], batches)["all"]
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1.0
    assert found.attention_mse == 0.0
    assert found.pseudo_perplexity > 2


def test_measurements_are_those_of_whole_logits_and_maps(models, batches, monkeypatch):
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 2)
    found = compare(*models, batches)["hau"]
    kl = agreeing = tokens = squares = pairs = surprise = 0.0
    with torch.no_grad():
        for batch in batches["hau"]:
            for row, ids in enumerate(batch.input_ids):
                length = len(ids) if batch.mask is None else int(batch.mask[row].sum())
                t, s = (model(ids[None, :length], None) for model in models)
                chosen = batch.labels[row, :length] != -100
                log_t, log_s = (
                    log_softmax(model.logits(one.hidden)[0, chosen], -1)
                    for model, one in zip(models, (t, s), strict=True)
                )
                kl += kl_div(log_s, log_t, log_target=True, reduction="sum").item()
                agreeing += (log_t.argmax(-1) == log_s.argmax(-1)).sum().item()
                original = batch.labels[row, :length][chosen]
                surprise -= log_s[torch.arange(len(original)), original].sum().item()
                tokens += int(chosen.sum())
                maps = [(o.query @ o.key.mT * o.scale).softmax(-1).mean(1) for o in (t, s)]
                squares += (maps[0] - maps[1]).square().sum().item()
                pairs += length**2
    assert tokens > 4
    assert found.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert found.top1 == agreeing / tokens
    assert found.attention_mse == pytest.approx(squares / pairs, rel=1e-4)
    assert found.pseudo_perplexity == pytest.approx(math.exp(surprise / tokens), rel=1e-4)


def test_all_is_the_mean_over_languages_whatever_their_size(models, batches):
    teacher = models[0]
    near = TappedEncoder(tiny_model("xlm-r", VOCABULARY))
    near.load_state_dict(
        {
            k: v + 0.03 * torch.randn_like(v) if v.is_floating_point() else v
            for k, v in teacher.state_dict().items()
        }
    )
    found = compare(teacher, near, batches)
    hau, swa, both = found["hau"], found["swa"], found["all"]
    assert hau.top1 != swa.top1
    assert both.kl == pytest.approx((hau.kl + swa.kl) / 2)
    assert both.top1 == pytest.approx((hau.top1 + swa.top1) / 2)
    assert both.attention_mse == pytest.approx((hau.attention_mse + swa.attention_mse) / 2)
    geometric = math.sqrt(hau.pseudo_perplexity * swa.pseudo_perplexity)
    assert both.pseudo_perplexity == pytest.approx(geometric)


def test_unmasked_text_has_no_perplexity_and_matches_all_tokens(models):
    found = compare(*models, {"hau": [batch_of(6, 4, masked=0)]})
    assert found["hau"].pseudo_perplexity is found["all"].pseudo_perplexity is None
    assert found["hau"].kl > 0.1


def test_the_student_stays_in_its_mode(models, batches):
    for mode in (True, False):
        models[1].train(mode)
        compare(*models, batches)
        assert models[1].training is mode


class Process:
    """One of two processes, which run one after the other: the second adds what the first had."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, index, others):
        self.process_index, self.others = index, others

    def reduce(self, totals, reduction):
        assert reduction == "sum"
        self.others.append(totals)
        return sum(self.others)

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


def test_two_processes_share_the_work_and_find_the_same(models, batches):
    alone = compare(*models, batches)
    read = []
    for model in models:
        model.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    others = []
    compare(*models, batches, Process(0, others))
    assert len(read) == 2 * 2  # two of the four batches, by both models
    together = compare(*models, batches, Process(1, others))
    for language, row in alone.items():
        assert vars(together[language]) == pytest.approx(vars(row), rel=1e-12)


def test_a_distiller_is_measured_in_full_whatever_its_loss_asks_of_the_teacher(models, batches):
    recipe = ObjectiveRecipe(alpha=0.0, attention_loss="relation", relation_heads=4)
    teacher = OnlineTeacher(models[0], comet_kernels, needed_parts(recipe))
    distiller = Distiller(teacher, models[1], Identity(), recipe, comet_kernels)
    assert measure_distiller(distiller, batches, Accelerator()) == compare(*models, batches)


class Cache:
    """What a teacher said to each batch, in memory; the teacher itself is gone."""

    def __init__(self, teacher, keep):
        self.output_weight, self.output_bias = teacher.output_weight, teacher.output_bias
        self.online, self.keep = OnlineTeacher(teacher, comet_kernels), keep

    def read(self, batch):
        return self.keep(self.online.read(batch))


def test_a_cache_of_hidden_states_measures_the_same(models, batches):
    online = compare(*models, batches)
    cache = Cache(models[0], lambda said: said)
    assert measure(cache, models[1], batches, comet_kernels, Accelerator()) == online


@pytest.mark.parametrize("ops", [comet_kernels, comet_kernels.reference])
def test_a_cache_of_all_logits_measures_the_same_kl(models, batches, ops):
    def keep(said):
        weight, bias = models[0].output_weight, models[0].output_bias
        top = largest_logits(said.hidden, weight, bias, VOCABULARY, 1.0)
        return TeacherOutputs(attention_map=None, top=top)

    online = compare(*models, batches)["all"]
    found = measure(Cache(models[0], keep), models[1], batches, ops, Accelerator(), 1.0)["all"]
    assert found == replace(online, kl=found.kl, attention_mse=None)
    assert found.kl == pytest.approx(online.kl, rel=1e-4)


def test_a_cache_of_large_logits_is_measured_at_its_temperature(models, batches):
    asked = []

    def keep(said):
        weight, bias = models[0].output_weight, models[0].output_bias
        return TeacherOutputs(top=largest_logits(said.hidden, weight, bias, 10, 2.0))

    cache = Cache(models[0], keep)
    for temperature in (2.0, 1.0):
        found = measure(cache, models[0], batches, comet_kernels, Accelerator(), temperature)
        asked.append(found["all"].kl)
        assert found["all"].top1 == 1.0
    recipe = ObjectiveRecipe(temperature=2.0)
    distiller = Distiller(cache, models[0], Identity(), recipe, comet_kernels)
    assert measure_distiller(distiller, batches, Accelerator())["all"].kl == asked[0]
    assert 0 < asked[0] < asked[1]  # the tail's mass is that of temperature 2


def test_the_table_names_every_language_and_measurement():
    rows = {
        "hau": Agreement(1.25, 0.5, 2e-3, 250002.04),
        "all": Agreement(1.25, 0.5, None, None),
    }
    text = table({"before": rows, "undistilled student": rows})
    lines = text.splitlines()
    assert [line.split("|")[0].strip() for line in lines] == ["", "", "hau", "all"]
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 100
    assert text.count("1.2500") == 4
    assert "50.0%" in text
    assert lines[2].count("2.00e-03") == lines[2].count("250,002.0") == 2
    assert lines[3].split("|")[1].split() == ["1.2500", "50.0%", "-", "-"]
    diverged = {"hau": Agreement(1.25, 0.5, 2e-3, 1.01e304)}
    assert len(table({"before": diverged}).splitlines()[-1]) == len(
        table({"x": rows}).split("\n")[0]
    )
