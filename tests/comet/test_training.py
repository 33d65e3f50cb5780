import contextlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model

from comet.batch import Batch, StepLosses
from comet.interruption import StopSignals
from comet.optimizers import Muon, make_optimizers
from comet.processes import make_accelerator
from comet.recipe import (
    CorpusRecipe,
    DistillRecipe,
    OptimisationRecipe,
    RunRecipe,
    TeacherRecipe,
)
from comet.runs import RunFolder
from comet.trackers import Trackers
from comet.training import Training, Watching, merged, warmup_and_decay
from comet.watch import Watch
from comet.window import Window


def groups_of(optimizer, names):
    return [
        ({names[id(value)] for value in group["params"]}, group["weight_decay"])
        for group in optimizer.param_groups
    ]


def wrapped():
    module = torch.nn.Module()
    module.student = tiny_model("xlm-r")
    module.projection = torch.nn.Linear(3, 3, bias=False)
    return module, {id(value): name for name, value in module.named_parameters()}


def test_adamw_decays_matrices_but_not_vectors_nor_the_projection():
    module, names = wrapped()
    recipe = OptimisationRecipe(weight_decay=0.1, steps=10, warmup_steps=1)
    (decaying, decay), (rest, none) = groups_of(make_optimizers(module, recipe)["adamw"], names)
    assert (decay, none) == (0.1, 0.0)
    assert "projection.weight" in rest
    assert "student.lm_head.decoder.weight" in decaying  # tied to the embeddings
    assert not any(name.endswith("bias") for name in decaying)
    assert len(decaying) + len(rest) == len(names)


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(architecture):
    model = tiny_model(architecture)
    names = {id(value): name for name, value in model.named_parameters()}
    recipe = OptimisationRecipe(muon_learning_rate=0.01, steps=10, warmup_steps=1)
    optimizers = make_optimizers(model, recipe)
    ((muon, _),) = groups_of(optimizers["muon"], names)
    matrices = {n for n, v in model.named_parameters() if ".layer" in n and v.ndim == 2}
    assert muon == matrices
    assert len(muon) >= 4 * 4
    assert not any("embed" in name or "decoder" in name or "head" in name for name in muon)
    adamw = set().union(*(found for found, _ in groups_of(optimizers["adamw"], names)))
    assert adamw == set(names.values()) - muon


def after_five_steps(make):
    """Matrices that Muon trained, tall and wide."""
    torch.manual_seed(5)
    values = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 40), (40, 24))]
    optimizer = make(values)
    for _ in range(5):
        for value in values:
            value.grad = torch.randn_like(value)
        optimizer.step()
    return torch.cat([value.detach().flatten() for value in values])


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.0), (torch.float32, 4e-3)])
def test_muon_is_torchs_but_for_its_precision(dtype, error):
    given = {"lr": 0.02, "weight_decay": 0.1}
    found = after_five_steps(lambda values: Muon(values, dtype=dtype, **given))
    torchs = after_five_steps(lambda values: torch.optim.Muon(values, **given))
    torch.testing.assert_close(found, torchs, rtol=0, atol=error + 1e-6)


@pytest.mark.parametrize("architecture", ["xlm-r", "bert", "electra", "modernbert"])
def test_input_embeddings_may_have_a_rate_of_their_own(architecture):
    model = tiny_model(architecture)
    recipe = OptimisationRecipe(
        learning_rate=1e-3, embedding_learning_rate=1e-2, steps=10, warmup_steps=1
    )
    groups = make_optimizers(model, recipe)["adamw"].param_groups
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    assert {key for key, rate in rates.items() if rate == 1e-2} == embeddings
    assert set(rates.values()) == {1e-2, 1e-3}
    assert all(group["initial_lr"] == group["lr"] for group in groups)
    assert len(rates) == len(list(model.parameters()))


def test_rates_rise_and_fall_linearly():
    factors = [warmup_and_decay(step, 2, 6) for step in range(6)]
    assert factors == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert warmup_and_decay(0, 0, 4) == 1


def test_float16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        make_accelerator("float16")


class Quadratic(torch.nn.Module):
    """Half the squared distance of one number to what the batch says, averaged over the step's sequences."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))

    def forward(self, batch, totals):
        values = batch.input_ids[:, 0].float()
        values = values.where(values < 200, torch.inf)
        summed = 0.5 * (self.weight - values).square().sum() / totals.tokens
        member = torch.nn.functional.one_hot(batch.languages, 2).float()
        by_language = torch.stack([values @ member, member.sum(0)])
        return StepLosses(summed, {"kd": summed / 2}, by_language)


class Fixed:
    """Steps of two sequences as one piece or two; `spoilt` steps hold a value that makes the loss infinite."""

    def __init__(self, pieces=1, spoilt=()):
        self.pieces, self.spoilt, self.given = pieces, spoilt, 0

    def __next__(self):
        self.given += 1
        far = 250 if self.given in self.spoilt else 3 * self.given
        rows = [(1, 0), (far, 1)]
        split = [rows] if self.pieces == 1 else [[row] for row in rows]
        return [batch_of(some) for some in split]

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def batch_of(rows):
    ids = torch.tensor([[value] for value, _ in rows])
    positions = torch.arange(len(rows))
    languages = torch.tensor([language for _, language in rows])
    return Batch(ids, None, positions, positions, ids, languages, len(rows), len(rows))


RECIPE = DistillRecipe(
    teacher=TeacherRecipe(model="a teacher"),
    corpus=CorpusRecipe(paths=["toy"]),
    optimisation=OptimisationRecipe(
        steps=6, warmup_steps=0, learning_rate=0.1, weight_decay=0.0, skipped_steps=1
    ),
    run=RunRecipe(log_every=2, checkpoint_every=3),
)


def training_of(folder, batches, tokenizer, *, resume=False, evaluate=dict, **optimisation):
    run = RunFolder(folder, RECIPE, resume=resume)
    folder.mkdir(exist_ok=True)
    watching = Watching(
        program="comet.distill",
        languages=("hau", "swa"),
        watch=Watch({}, RECIPE.objective),
        trackers=Trackers([], folder),
        tokenizer=tokenizer,
        evaluate=evaluate,
    )
    return Training(
        Quadratic(), batches, replace(RECIPE.optimisation, **optimisation), RECIPE.run, run,
        make_accelerator("float32"), watching,
    )  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_means_over_the_window_and_languages(tmp_path, tokenizer):
    training = training_of(tmp_path / "run", Fixed(), tokenizer)
    training.train()
    first, second, third = lines(tmp_path / "run")
    assert [line["step"] for line in (first, second, third)] == [2, 4, 6]
    assert [line["tokens"] for line in (first, second, third)] == [4, 8, 12]
    assert first["kd/hau"] == 1
    assert second["kd/swa"] == pytest.approx((9 + 12) / 2)
    assert first["kd"] == pytest.approx(first["loss"] / 2)
    # the first step starts from 0: ((1² + 3²) / 2 tokens) / 2; its gradient is −2
    weight = training_of(tmp_path / "again", Fixed(), tokenizer)
    weight._train_step(StopSignals())
    assert weight._window._shares["loss"].item() == pytest.approx(2.5)
    assert weight._window._norm.item() == pytest.approx(2)


def test_pieces_change_nothing(tmp_path, tokenizer):
    whole = training_of(tmp_path / "whole", Fixed(), tokenizer)
    split = training_of(tmp_path / "split", Fixed(pieces=2), tokenizer)
    for training in (whole, split):
        training.train()
    torch.testing.assert_close(split.module.weight, whole.module.weight, rtol=1e-6, atol=0)
    for one, other in zip(lines(tmp_path / "split"), lines(tmp_path / "whole"), strict=True):
        for name in ("loss", "kd", "grad_norm", "tokens", "kd/hau", "kd/swa"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(tmp_path, tokenizer, capsys):
    training = training_of(tmp_path / "run", Fixed(spoilt=[3]), tokenizer)
    training.train()
    assert training.module.weight.isfinite().all()
    first, second, _ = lines(tmp_path / "run")
    assert "skipped" not in first
    assert second["skipped"] == 1
    assert second["tokens"] == 6
    said = capsys.readouterr().out
    assert "1 of the steps up to 4 skipped" in said
    assert "skipped  1 of 6 steps" in said


def test_a_gradient_that_a_scale_overflows_is_skipped_without_ending_the_run(tmp_path, tokenizer):
    """The scaler of float16, on the CPU: it halves its factor until gradients fit, however often that takes."""
    training = training_of(tmp_path / "run", Fixed(), tokenizer)
    training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    training.train()
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written] == [2, 4, 6]
    assert written[0]["skipped"] == 1
    assert written[0]["grad_norm"] == pytest.approx(3.5)  # of the second step alone, unscaled
    assert training.accelerator.scaler.get_scale() < 2.0**127
    assert training.module.weight.item() > 0


def recorded(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_records_how_many_steps_were_skipped_before_and_after_it_was_resumed(
    tmp_path, tokenizer
):
    stopped = training_of(tmp_path / "run", Fixed(spoilt=[2, 4, 5]), tokenizer)
    with pytest.raises(ValueError, match="not finite in step 5"), stopped.folder.recorded():
        stopped.train()
    assert recorded(tmp_path / "run")["state"] == "failed"
    assert recorded(tmp_path / "run")["skipped_steps"] == 3
    resumed = training_of(tmp_path / "run", Fixed(spoilt=[5]), tokenizer, resume=True)
    with resumed.folder.recorded():
        resumed.resume()
        resumed.train()
    assert recorded(tmp_path / "run")["state"] == "done"
    assert recorded(tmp_path / "run")["skipped_steps"] == 2  # steps 2 and 5, of step 3's checkpoint


@pytest.mark.parametrize("scaled", [False, True])
def test_a_run_that_never_changed_its_weights_fails(tmp_path, tokenizer, scaled):
    spoilt = [] if scaled else range(1, 7)
    training = training_of(tmp_path / "run", Fixed(spoilt=spoilt), tokenizer, skipped_steps=9)
    if scaled:
        training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        training.accelerator.scaler.set_backoff_factor(1 - 1e-7)
    expected = pytest.raises(ValueError, match="all 6 steps were skipped, and nothing was learnt")
    with expected, training.folder.recorded():
        training.train()
    assert training.module.weight == 0
    assert recorded(tmp_path / "run")["state"] == "failed"
    assert recorded(tmp_path / "run")["skipped_steps"] == 6


@pytest.mark.parametrize("rate", [1e30, 1e39])
def test_a_rate_that_is_far_too_high_is_named_with_the_step(tmp_path, tokenizer, rate):
    training = training_of(tmp_path / "run", Fixed(), tokenizer, learning_rate=rate)
    message = (
        "^training diverged: loss inf or its gradient not finite in step 3, the second in a row"
    )
    with pytest.raises(ValueError, match=message) as raised:
        training.train()
    assert f"lower learning rate (now {rate:g})" in str(raised.value)


def test_sums_that_overflow_end_a_run(tmp_path, tokenizer, monkeypatch):
    training = training_of(tmp_path / "run", Fixed(), tokenizer)
    metrics = Window.metrics
    monkeypatch.setattr(
        Window, "metrics", lambda *given: {**metrics(*given), "kd/hau": float("inf")}
    )
    with pytest.raises(
        ValueError, match=r"^training diverged: kd/hau is inf in training after step 2"
    ):
        training.train()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, tokenizer):
    training = training_of(tmp_path / "run", Fixed(), tokenizer)
    training._before_step = lambda step, _: step == 5 and training._optimizers["adamw"].register_step_post_hook(
        lambda *_: training.module.weight.data.fill_(float("nan"))
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="diverged: the weights are not finite after step 6; start"
    ):
        training.train()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measurements_that_are_not_finite_end_a_run(tmp_path, tokenizer, value):
    found = {"hau": {"kl": 1.0, "attention_mse": None}, "swa": {"kl": value}}
    training = training_of(tmp_path / "run", Fixed(), tokenizer)
    with pytest.raises(ValueError, match=f"kl is {value} on held-out text of swa before the first"):
        training.tell_evaluation(found, print)
    training.train()
    message = f"diverged: kl is {value} on held-out text of swa after step 6; start a run with a lo"
    with pytest.raises(ValueError, match=message):
        training.tell_evaluation(found, print)
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()


def test_too_many_in_a_row_end_the_run_with_the_batch_saved(tmp_path, tokenizer):
    training = training_of(tmp_path / "run", Fixed(spoilt=[4, 5]), tokenizer)
    with pytest.raises(ValueError, match="not finite in step 5, the second in a row; its batch is"):
        training.train()
    assert training.module.weight.isfinite().all()
    (saved,) = (tmp_path / "run").glob("bad_batches/*.safetensors")
    assert load_file(saved)["0/input_ids"].tolist() == [[1], [250]]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]


def test_a_resumed_training_goes_on_in_the_middle_of_a_window(tmp_path, tokenizer):
    expected = training_of(tmp_path / "whole", Fixed(), tokenizer)
    expected.train()
    stopped = training_of(tmp_path / "run", Fixed(spoilt=[5, 6]), tokenizer)
    with pytest.raises(ValueError, match="not finite"):
        stopped.train()
    resumed = training_of(tmp_path / "run", Fixed(), tokenizer, resume=True)
    resumed.resume()
    assert resumed.step == 3
    resumed.train()
    assert torch.equal(resumed.module.weight, expected.module.weight)
    timed = ("tokens_per_second", "peak_memory")
    for one, other in zip(lines(tmp_path / "run"), lines(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_resuming_says_what_of_the_environment_changed(tmp_path, tokenizer, monkeypatch, capsys):
    with contextlib.suppress(ValueError):
        training_of(tmp_path / "run", Fixed(spoilt=[5, 6]), tokenizer).train()
    training_of(tmp_path / "run", Fixed(), tokenizer, resume=True).resume()
    assert capsys.readouterr().out.count("resumed with") == 0
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr(
        "comet.environment.versions", lambda _: {"torch": "99", "transformers": "5"}
    )
    training_of(tmp_path / "run", Fixed(), tokenizer, resume=True).resume()
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "resumed with" in one]
    assert f"torch 99 (before: {torch.__version__.split('+')[0]}" in line
    assert "threads 64 (before:" in line
    assert "may differ in its last bits" in line


def test_positions_of_processes_are_joined():
    positions = [
        {"streams": {"0": {"at": 1}}, "kind": "text"},
        {"streams": {"1": {"at": 2}}, "kind": "text"},
    ]
    assert merged(positions) == {"streams": {"0": {"at": 1}, "1": {"at": 2}}, "kind": "text"}
