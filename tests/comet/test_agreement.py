import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from torch.nn.functional import kl_div, log_softmax

import comet_kernels
from comet import agreement
from comet.agreement import Agreement, measure, table
from comet.batches import Masking, evaluation_batches
from comet.tap import TappedEncoder


@pytest.fixture
def models(tokenizer):
    size = len(tokenizer)
    shapes = ({}, {"num_hidden_layers": 2})
    return [TappedEncoder(tiny_model("xlm-r", size, **shape)).eval() for shape in shapes]


@pytest.fixture
def batches(tokenizer):
    masking = Masking(tokenizer, 0.3, "masked", 0)
    texts = [
        "Malami ya koya wa ɗalibai lissafi.",
        "Yaro ya ci.",
        "Mata sun je kasuwa jiya da yamma.",
    ]
    return {"hau": evaluation_batches(texts, masking, 2, 32)}


def compare(teacher, student, batches):
    return measure(teacher, student, batches, comet_kernels, Accelerator())


def test_a_model_agrees_with_itself(models, batches):
    found = compare(models[0], models[0], batches)["all"]
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1.0
    assert found.attention_mse == 0.0


def test_measurements_are_those_of_whole_logits_and_maps(models, batches, monkeypatch):
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 2)
    found = compare(*models, batches)["hau"]
    kl = agreeing = tokens = squares = pairs = 0.0
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
                tokens += int(chosen.sum())
                maps = [(o.query @ o.key.mT * o.scale).softmax(-1).mean(1) for o in (t, s)]
                squares += (maps[0] - maps[1]).square().sum().item()
                pairs += length**2
    assert tokens > 4
    assert found.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert found.top1 == agreeing / tokens
    assert found.attention_mse == pytest.approx(squares / pairs, rel=1e-4)


def test_the_table_names_every_language_and_measurement():
    rows = {"hau": Agreement(1.25, 0.5, 2e-3), "all": Agreement(1.25, 0.5, 2e-3)}
    text = table({"before": rows, "after": rows})
    assert [line.split("|")[0].strip() for line in text.splitlines()] == ["", "", "hau", "all"]
    assert text.count("1.2500") == 4
    assert "50.0%" in text
    assert "2.000e-03" in text
