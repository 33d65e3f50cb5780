"""The training loop that adapting a teacher and distilling a student share.

A module whose forward takes a batch and returns named losses, the first of them the one to minimise, is trained by
AdamW, and if asked Muon (Jordan et al., 2024) for the weight matrices of its layers, with warm-up, linear decay and
clipping. The device is asked for numbers only when a line is logged or a checkpoint is due.
"""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from comet.batch import Batch
from comet.checkpoints import (
    checkpoints,
    load_checkpoint,
    module_tensors,
    optimizer_tensors,
    random_tensors,
    restore_module,
    restore_optimizer,
    restore_random,
    save_checkpoint,
)
from comet.recipe import OptimisationRecipe, RunRecipe
from comet.runs import RunFolder, peak_memory


class Batches(Protocol):
    """Where batches come from: endless, with a position that can be saved."""

    def __next__(self) -> Batch:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""


def make_accelerator(recipe: OptimisationRecipe) -> Accelerator:
    """Device placement and precision of a run.

    Raises:
        ValueError: started as several processes.
    """
    precision = {"float32": "no", "bfloat16": "bf16"}[recipe.precision]
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"started as {accelerator.num_processes} processes, but a run trains in one; "
            "start it with python instead of torchrun or accelerate launch"
        )
    return accelerator


class Training:
    """A training run over a module.

    Args:
        module: its forward takes a `Batch` and returns a NamedTuple of scalar losses, `total` first.
        batches: training batches.
        optimisation: rates and steps.
        run: logging, checkpoints.
        folder: where metrics and checkpoints go.
        accelerator: device and precision.
        remark: added to progress lines, such as what a loss is to be compared with.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Batches,
        optimisation: OptimisationRecipe,
        run: RunRecipe,
        folder: RunFolder,
        accelerator: Accelerator,
        remark: str = "",
    ) -> None:
        self.accelerator = accelerator
        self.batches = batches
        self.optimisation = optimisation
        self.run = run
        self.folder = folder
        self.remark = remark
        self.step = 0
        self.tokens = 0
        self.module = module.to(accelerator.device)
        self._prepared = accelerator.prepare_model(module)
        self._optimizers = make_optimizers(module, optimisation)
        self._schedules = [
            get_linear_schedule_with_warmup(
                optimizer, optimisation.warmup_steps, optimisation.steps
            )
            for optimizer in self._optimizers.values()
        ]

    def train(self) -> None:
        """Train to the last step, log, and save checkpoints.

        Raises:
            ValueError: a loss is no finite number; what was saved before stays.
        """
        self.module.train()
        progress = _Progress(self.optimisation.steps, self.step, self.remark)
        window = _Window()
        with progress:
            while self.step < self.optimisation.steps:
                window.add(*self._train_step())
                if self.step % self.run.log_every == 0 or self.step == self.optimisation.steps:
                    metrics = self._metrics(window)
                    self.folder.log(metrics)
                    progress.show(metrics)
                    window = _Window()
                if (
                    self.step % self.run.checkpoint_every == 0
                    and self.step < self.optimisation.steps
                ):
                    window.require_finite(self.step, self.folder)
                    self._save()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        found = checkpoints(self.folder.checkpoints)
        if not found:
            raise ValueError(
                f"--resume: {self.folder.path} has no checkpoint yet; delete the folder and start again"
            )
        tensors, state = load_checkpoint(found[-1])
        restore_module(self.module, tensors)
        for name, optimizer in self._optimizers.items():
            restore_optimizer(optimizer, name, tensors)
        for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
            for group, rate in zip(
                schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True
            ):
                group["lr"] = rate
        self.batches.load_state_dict(state["batches"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.folder.forget_metrics_after(self.step)
        restore_random(tensors)

    def _train_step(self) -> tuple[Mapping[str, Tensor], Tensor, int]:
        batch = next(self.batches)
        losses = self._prepared(batch.to(self.accelerator.device))
        self.accelerator.backward(losses[0])
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.optimisation.max_grad_norm)
        self._rate = self._schedules[0].get_last_lr()[0]
        for optimizer, schedule in zip(self._optimizers.values(), self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens
        named = {name: value.detach() for name, value in losses._asdict().items()}
        return named, norm.detach(), batch.tokens

    def _metrics(self, window: "_Window") -> dict[str, Any]:
        window.require_finite(self.step, self.folder)
        means = window.means()
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": means.pop("total"),
            **means,
            "lr": self._rate,
            "tokens_per_second": window.tokens_per_second(),
            "peak_memory": peak_memory(),
        }

    def _save(self) -> None:
        tensors = module_tensors(self.module) | random_tensors()
        for name, optimizer in self._optimizers.items():
            tensors |= optimizer_tensors(optimizer, name)
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "batches": self.batches.state_dict(),
            "schedules": [_plain(schedule.state_dict()) for schedule in self._schedules],
        }
        save_checkpoint(
            self.folder.checkpoints, self.step, tensors, state, self.run.keep_checkpoints
        )


def make_optimizers(
    module: nn.Module, recipe: OptimisationRecipe
) -> dict[str, torch.optim.Optimizer]:
    """AdamW over all that is trained or, with a Muon rate, Muon over the layers' matrices and AdamW over the rest.

    Embeddings, the output embeddings and everything of one dimension stay with AdamW; vectors, biases and the
    attention projection, which starts as the identity, do not decay.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    rate = recipe.muon_learning_rate
    muon = [] if rate is None else [name for name in trained if _is_layer_matrix(name, trained)]
    adamw = [name for name in trained if name not in muon]
    decaying = [name for name in adamw if _decays(name, trained)]
    groups = [
        {"params": [trained[name] for name in decaying], "weight_decay": recipe.weight_decay},
        {
            "params": [trained[name] for name in adamw if name not in decaying],
            "weight_decay": 0.0,
        },
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=recipe.learning_rate
        )
    }
    if rate is not None and muon:
        optimizers["muon"] = torch.optim.Muon(
            [trained[name] for name in muon], lr=rate, weight_decay=recipe.weight_decay
        )
    return optimizers


def _is_layer_matrix(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return ".layer" in name and "embeddings" not in name and trained[name].ndim == 2


def _decays(name: str, trained: Mapping[str, nn.Parameter]) -> bool:
    return trained[name].ndim >= 2 and "projection" not in name.split(".")


class _Window:
    """Sums since the last logged line, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._tokens = 0
        self._steps = 0
        self._sums: dict[str, Any] = {}

    def add(self, losses: Mapping[str, Tensor], norm: Tensor, tokens: int) -> None:
        for name, value in {**losses, "grad_norm": norm}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
        self._tokens += tokens
        self._steps += 1

    def means(self) -> dict[str, float]:
        return {name: value.item() / self._steps for name, value in self._sums.items()}

    def tokens_per_second(self) -> float:
        return round(self._tokens / (time.perf_counter() - self._started), 1)

    def require_finite(self, step: int, folder: RunFolder) -> None:
        for name, value in self.means().items() if self._steps else ():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} became {value} between step {step - self._steps + 1} and {step}: start a run "
                    "with a lower learning rate or gradient norm, or in float32; what "
                    f"{folder.path} holds is from before"
                )


class _Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, done: int, remark: str) -> None:
        self._steps = steps
        self._remark = remark
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not self._terminal)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, metrics: Mapping[str, Any]) -> None:
        text = f"loss {metrics['loss']:.4f}{self._remark}, {metrics['tokens_per_second']:,.0f} tokens/s"
        if self._terminal:
            self._bar.update(metrics["step"] - self._bar.n)
            self._bar.set_postfix_str(text)
        else:
            print(f"step {metrics['step']}/{self._steps}: {text}", flush=True)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions in it, which JSON has no word for."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }
