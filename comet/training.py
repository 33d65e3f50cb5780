"""The training loop that adapting a teacher and distilling a student share.

A module whose forward takes a piece of a step's batch and the counts of the whole step returns its share of the losses.
Shares add up over the pieces of a process (gradient accumulation) and over processes (DDP averages gradients, and so
gets the loss times their number): neither changes the loss or the weights. The device is asked for one number a step,
whether loss and gradient are finite, and for the rest when a line is logged or a checkpoint is due.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from comet.bad_batches import save_bad_batch
from comet.batch import Batch, StepLosses, added
from comet.checkpoints import (
    load_chosen,
    module_tensors,
    optimizer_tensors,
    prune,
    random_tensors,
    restore_module,
    restore_optimizer,
    restore_random,
    save_checkpoint,
)
from comet.configuration import to_yaml
from comet.interruption import Interrupted, StopSignals
from comet.optimizers import make_optimizers
from comet.processes import any_process, from_main, gathered, on_main, say, step_totals
from comet.progress import Progress
from comet.recipe import OptimisationRecipe, RunRecipe
from comet.runs import EVALUATION, RunFolder, peak_memory, require_same_recipe
from comet.trackers import Trackers
from comet.watch import Watch
from comet.window import Window

Evaluation = Mapping[str, Mapping[str, float | None]]


class Batches(Protocol):
    """Where batches come from: endless, with a position that can be saved."""

    def __next__(self) -> list[Batch]:
        """The pieces of the next step that this process reads."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""


class Kept(Protocol):
    """What a run keeps beside module and optimizers, such as its best weights: saved and restored with them."""

    def tensors(self) -> dict[str, Tensor]:
        """By name."""

    def state_dict(self) -> dict[str, Any]:
        """The rest, as JSON."""

    def restore(self, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to what was saved; tensors are on the CPU."""


@dataclass(frozen=True)
class Watching:
    """What is told of a run while it trains.

    Attributes:
        program: as the user typed it, to say how a run goes on.
        languages: of the corpus, in alphabetical order.
        watch: warns of what goes wrong.
        trackers: where metrics also go.
        tokenizer: to write a bad batch as text.
        evaluate: measures the module on held-out text: language → name → value; all processes call it.
        remark: added to progress lines, such as what a loss is to be compared with.
    """

    program: str
    languages: tuple[str, ...]
    watch: Watch
    trackers: Trackers
    tokenizer: PreTrainedTokenizerFast
    evaluate: Callable[[], Evaluation]
    remark: str = ""


class Training:
    """A training run over a module.

    Args:
        module: its forward takes a `Batch` and the `Counts` of its step, and returns `StepLosses`.
        batches: training batches.
        optimisation: rates and steps.
        run: logging, checkpoints.
        folder: where metrics and checkpoints go.
        accelerator: device, precision and processes.
        watching: evaluation, warnings, trackers.
        before_step: called with the steps done and the steps of the run, before each.
        kept: saved in checkpoints too.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Batches,
        optimisation: OptimisationRecipe,
        run: RunRecipe,
        folder: RunFolder,
        accelerator: Accelerator,
        watching: Watching,
        before_step: Callable[[int, int], None] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.batches = batches
        self.optimisation = optimisation
        self.run = run
        self.folder = folder
        self.watching = watching
        self._before_step = before_step
        self._kept = kept
        self.step = 0
        self.skipped = 0  # of the steps so far
        self.tokens = 0
        self.tokens_per_second: float | None = None  # of the last logged line
        self._bad_in_a_row = 0
        self._window = Window()
        self.module = module.to(accelerator.device)
        self._prepared = accelerator.prepare_model(module)
        self._optimizers = make_optimizers(module, optimisation)
        if accelerator.process_index > 0:  # else all processes would drop out the same units
            set_seed(run.seed + accelerator.process_index)

    def train(self) -> None:
        """Train to the last step: log, evaluate, warn, save checkpoints.

        Raises:
            ValueError: loss or gradient were not finite several times in a row or in every step, or the weights are not
                finite any more; the batch and the last good checkpoint stay.
            OSError: something cannot be written; the last good checkpoint stays.
            Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
        """
        self.module.train()
        self.folder.note(skipped_steps=self.skipped)
        self.folder.begin_at(self.step)
        progress = Progress(
            self.optimisation.steps,
            self.step,
            self.watching.remark,
            enabled=self.accelerator.is_main_process,
        )
        with progress, StopSignals() as signals:
            while self.step < self.optimisation.steps:
                stop = self._train_step(signals)
                last = self.step == self.optimisation.steps
                if last or self.step % self.run.log_every == 0:
                    self._log(progress)
                every = self.run.evaluate_every
                if every and self.step % every == 0 and not last:
                    self._evaluate(progress)
                if last or stop or self.step % self.run.checkpoint_every == 0:
                    self._save()
                if stop and not last:
                    raise Interrupted(self._how_to_go_on(), signals.code)
            self._tell_skipped(progress.say)

    def resume(self, step: int | None = None) -> None:
        """Go on from the newest checkpoint of the run folder, from that of `step`, or from the start if it has none.

        Raises:
            ValueError: it is damaged, of another recipe, of a run that read something else, or of more steps than the
                run is to have.
        """
        tensors: dict[str, Tensor] | None = None

        def read() -> dict[str, Any] | None:
            nonlocal tensors
            loaded = load_chosen(self.folder.checkpoints, step)
            if loaded is None:
                return None
            require_same_recipe(self.folder.recipe, loaded[1]["recipe"])
            self.folder.require_same_inputs(loaded[1].get("inputs"))
            self.folder.tell_differences(loaded[1].get("environment"))
            self._require_steps_left(loaded[1]["step"])
            prune(self.folder.checkpoints, self.run.keep_checkpoints)
            tensors = loaded[0]
            return loaded[1]

        state = on_main(read)
        if state is None:
            self.folder.forget_lines_after(0, -1)
            return
        tensors = from_main(tensors, self.accelerator)
        restore_module(self.module, tensors)
        for name, optimizer in self._optimizers.items():
            restore_optimizer(optimizer, name, tensors)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state["batches"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.skipped = state.get("skipped", 0)  # format 1 counted none
        self._bad_in_a_row = state["bad_in_a_row"]
        self._window = Window.restored(tensors, state["window"], self.accelerator)
        self.watching.watch.load_state_dict(state["watch"])
        before = state.get("steps") or state["recipe"]["optimisation"].get("steps")
        self._tell_length(before)
        # the last evaluation is that of the trained model, after the last checkpoint
        at_an_end = self.step in (before, self.optimisation.steps)
        self.folder.forget_lines_after(self.step, self.step - at_an_end)
        if self._kept is not None:
            kept = {name[5:]: value for name, value in tensors.items() if name.startswith("kept/")}
            self._kept.restore(kept, state["kept"])
        restore_random(tensors, self.accelerator.process_index)
        if at_an_end and self.step < self.optimisation.steps:
            self.tell_evaluation(self.watching.evaluate(), say)

    def _require_steps_left(self, done: int) -> None:
        """Refuse a checkpoint from behind the run's end.

        Raises:
            ValueError: it is from there.
        """
        if done > self.optimisation.steps:
            raise ValueError(
                f"--resume: the run is to have {self.optimisation.steps:,} steps, but its checkpoint has done "
                f"{done:,}; give as many or more, or an earlier checkpoint with --resume-from"
            )

    def _tell_length(self, before: int | None) -> None:
        """Say what becomes of the schedules where the run got longer or shorter.

        Args:
            before: the steps it was to have; None where an earlier version did not note it.
        """
        recipe = self.optimisation
        if before in (None, recipe.steps):
            return
        rates = [
            recipe.learning_rate * warmup_and_decay(self.step, recipe.warmup_steps, steps)
            for steps in (before, recipe.steps)
        ]
        say(
            f"steps    {recipe.steps:,} instead of {before:,}: from step {self.step:,} on, learning rate and other "
            f"schedules are those of a run of {recipe.steps:,} steps "
            f"(learning rate {rates[1]:.3g} instead of {rates[0]:.3g})"
        )

    def _train_step(self, signals: StopSignals) -> bool:
        """One step of all processes; whether one of them was told to stop."""
        if self._before_step is not None:
            self._before_step(self.step, self.optimisation.steps)
        pieces = next(self.batches)
        losses, tokens = self._forward_backward(pieces)
        norm = self._clip()
        told = torch.tensor(signals.received, device=norm.device)
        flags = torch.stack([~losses.total.isfinite(), ~norm.isfinite(), told])
        no_loss, no_gradient, stop = any_process(flags.to(torch.int32), self.accelerator)
        is_bad = no_loss or (no_gradient and not self._scaled)
        for optimizer in self._optimizers.values():
            self._update(optimizer, is_bad)
            optimizer.zero_grad(set_to_none=True)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.step += 1
        if is_bad or no_gradient:  # without a finite gradient a scaler leaves the weights alone
            self.skipped += 1
            self._window.skipped += 1
            self.folder.note(skipped_steps=self.skipped)
        else:
            self._window.add(losses, norm, tokens)
        self._bad_in_a_row = self._bad_in_a_row + 1 if is_bad else 0
        if self._bad_in_a_row > self.optimisation.skipped_steps:
            self._give_up(pieces, losses)
        return stop

    def _forward_backward(self, pieces: list[Batch]) -> tuple[StepLosses, int]:
        """The sums of this process's shares, detached, and how many tokens it read."""
        totals = step_totals(pieces, self.accelerator)
        shares = []
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            waiting = contextlib.nullcontext() if is_last else self._no_sync()
            with waiting:
                share = self._prepared(piece.to(self.accelerator.device), totals)
                self.accelerator.backward(share.total * self.accelerator.num_processes)
            shares.append(share)
        return added(shares), sum(piece.tokens for piece in pieces)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        return self.accelerator.no_sync(self._prepared)

    @property
    def _scaled(self) -> bool:
        """Whether a gradient that overflows is the scaler's business: it lowers its factor and skips the update."""
        return self.accelerator.scaler is not None

    def _clip(self) -> Tensor:
        if self.accelerator.scaler is not None:
            for optimizer in self._optimizers.values():
                self.accelerator.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.optimisation.max_grad_norm)
        return norm.detach()

    def _update(self, optimizer: torch.optim.Optimizer, is_bad: bool) -> None:
        factor = warmup_and_decay(
            self.step, self.optimisation.warmup_steps, self.optimisation.steps
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.step(optimizer)
        elif not is_bad:
            optimizer.step()

    def _give_up(self, pieces: list[Batch], losses: StepLosses) -> NoReturn:
        """End a run that had too many steps in a row without a finite loss or gradient.

        Raises:
            ValueError: always.
        """
        shares = gathered(pieces, self.accelerator)
        aside = on_main(lambda: self._save_bad(shares))
        raise ValueError(
            f"training diverged: loss {losses.total.item()} or its gradient not finite in step {self.step}, the "
            f"{_ordinal(self._bad_in_a_row)} in a row; its batch is in {aside}; {self._remedy()}"
        )

    def _save_bad(self, shares: Sequence[Sequence[Batch]]) -> Path:
        """Write what every process read of a step; returns the first file."""
        files = [
            save_bad_batch(
                self.folder.path, self.step, share, self.watching.tokenizer, process=process
            )
            for process, share in enumerate(shares)
        ]
        return files[0]

    def _remedy(self) -> str:
        """What to do about a run that diverged."""
        return (
            f"start a run with a lower learning rate (now {self.optimisation.learning_rate:g}) or gradient norm, or "
            f"in float32; what else {self.folder.path} holds is from before"
        )

    def _require_finite(self, found: Mapping[str, Any], where: str) -> None:
        """Refuse measurements of a model that diverged; all processes have the same.

        Raises:
            ValueError: one of them is not finite.
        """
        for name, value in found.items():
            if isinstance(value, Mapping):
                self._require_finite(value, f"{where} of {name}")
            elif isinstance(value, float) and not math.isfinite(value):
                if self.step == 0:
                    raise ValueError(
                        f"{name} is {value} {where} before the first step: the model's answers are not finite; use "
                        "other weights, or float32"
                    )
                raise ValueError(
                    f"training diverged: {name} is {value} {where} after step {self.step}; {self._remedy()}"
                )

    def _require_finite_weights(self) -> None:
        """Refuse to save weights that diverged.

        Raises:
            ValueError: they are not finite.
        """
        finite = [value.isfinite().all() for value in self.module.parameters()]
        if not torch.stack(finite).all():
            raise ValueError(
                f"training diverged: the weights are not finite after step {self.step}; {self._remedy()}"
            )

    def _tell_skipped(self, say: Callable[[str], None]) -> None:
        """Say at the end how many steps were skipped.

        Raises:
            ValueError: all of them.
        """
        if self.skipped == self.step:
            raise ValueError(
                f"all {self.step} steps were skipped, and nothing was learnt: loss or gradient not finite in each; "
                f"{self._remedy()}"
            )
        if self.skipped:
            say(f"skipped  {self.skipped} of {self.step} steps: loss or gradient not finite")

    def _log(self, progress: Progress) -> None:
        metrics = self._metrics()
        self._require_finite(metrics, "in training")
        self._window = Window()
        self.folder.log(metrics)
        self.watching.trackers.log(metrics)
        if "skipped" in metrics:
            progress.say(
                f"warning: {metrics['skipped']} of the steps up to {self.step} skipped: loss or gradient not finite"
            )
        if "loss" in metrics:
            progress.show(metrics)
            for warning in self.watching.watch.metrics(metrics):
                progress.say(warning)

    def _metrics(self) -> dict[str, Any]:
        found = self._window.metrics(self.accelerator, self.watching.languages)
        self.tokens_per_second = found.pop("tokens_per_second")
        self.tokens += found.pop("tokens")
        factor = warmup_and_decay(
            self.step - 1, self.optimisation.warmup_steps, self.optimisation.steps
        )
        return {
            "step": self.step,
            "tokens": self.tokens,
            **found,
            "lr": self.optimisation.learning_rate * factor,
            "tokens_per_second": self.tokens_per_second,
            "peak_memory": peak_memory(),
        }

    def _evaluate(self, progress: Progress) -> None:
        with self._window.paused():
            found = self.watching.evaluate()
            self.module.train()
        self.tell_evaluation(found, progress.say)

    def tell_evaluation(self, found: Evaluation, say: Callable[[str], None]) -> None:
        """Write down what was measured on held-out text at this step, send it to the trackers, and warn.

        Raises:
            ValueError: it is not finite.
        """
        self._require_finite(found, "on held-out text")
        self.folder.log({"step": self.step, **found}, EVALUATION)
        self.watching.trackers.log_evaluation(self.step, found)
        for warning in self.watching.watch.evaluation(self.step, found):
            say(warning)

    def _save(self) -> None:
        with self._window.paused():
            self._require_finite_weights()
            process = self.accelerator.process_index
            generators = gathered(random_tensors(process), self.accelerator)
            positions = gathered(self.batches.state_dict(), self.accelerator)
            sums, rest = self._window.state(self.accelerator)
            state = {
                "step": self.step,
                "steps": self.optimisation.steps,
                "tokens": self.tokens,
                "skipped": self.skipped,
                "bad_in_a_row": self._bad_in_a_row,
                "batches": merged(positions),
                "window": rest,
                "watch": self.watching.watch.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self._scaled else None,
                "recipe": yaml.safe_load(to_yaml(self.folder.recipe)),
                "environment": self.folder.environment,
                "inputs": self.folder.inputs_as_json,
            }
            tensors = {**module_tensors(self.module), **sums}
            if self._kept is not None:
                state["kept"] = self._kept.state_dict()
                tensors |= {f"kept/{name}": value for name, value in self._kept.tensors().items()}
            for name, optimizer in self._optimizers.items():
                tensors |= optimizer_tensors(optimizer, name)
            for states in generators:
                tensors |= states
            on_main(
                lambda: save_checkpoint(
                    self.folder.checkpoints, self.step, tensors, state, self.run.keep_checkpoints
                )
            )

    def _how_to_go_on(self) -> str:
        return (
            f"stopped and saved at step {self.step}; go on with: python -m {self.watching.program} --resume "
            f"--output {self.folder.path}"
        )


def warmup_and_decay(step: int, warmup_steps: int, steps: int) -> float:
    """The factor of the learning rates after `step` steps: linear from 0 to 1, then linear to 0 at the end."""
    if step < warmup_steps:
        return step / warmup_steps
    return (steps - step) / max(1, steps - warmup_steps)


def merged(positions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The positions of all processes as one: mappings are joined, the rest is the same on each."""
    joined: dict[str, Any] = {}
    for position in positions:
        for name, value in position.items():
            if isinstance(value, Mapping):
                joined[name] = merged([joined.get(name, {}), value])
            else:
                joined[name] = value
    return joined


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
