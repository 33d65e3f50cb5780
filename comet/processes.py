"""One process or several: who writes, what is agreed on, and how small things travel between them.

A run is started as several processes by `accelerate launch` or `torchrun`. The main process alone reads and writes the
run folder, so that machines need not share one; what it found, or why it failed, the others learn from it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from comet.batch import Batch, Counts, summed_counts, total_counts
from comet.lifeline import Lifeline

Value = TypeVar("Value")
Precision = Literal["float32", "bfloat16", "float16"]
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# The main process may work alone for long, such as on soft labels, while the others wait for it.
_PATIENCE = timedelta(days=1)
_BLOCK = 1 << 26
_program: str | None = None  # of the command that runs
_lifeline: Lifeline | None = None
_main_is_alone = False  # within `on_main` the others wait: nothing can be agreed on with them
_received: list[
    tempfile.TemporaryDirectory[str]
] = []  # folders of the main process, until this one ends


class FailedElsewhereError(Exception):
    """The main process ended and has said why: end quietly.

    Args:
        code: its exit code.
    """

    def __init__(self, code: int = 2) -> None:
        super().__init__()
        self.code = code


def this_process() -> PartialState:
    """This process among those that were started together; joins them at the first call."""
    global _lifeline
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    if _program is not None and _lifeline is None and state.num_processes > 1:
        _lifeline = Lifeline(_program, state.process_index, state.num_processes, _from_main)
    return state


def _from_main(value: Value | None) -> Value:
    """What the main process gives."""
    values = [value]
    broadcast_object_list(values)
    return cast(Value, values[0])


@contextmanager
def among_processes(program: str) -> Iterator[None]:
    """Run a command within this context: if one of several processes dies or fails, the others end soon, and quietly.

    Args:
        program: as the user typed it, for the line that says how to resume.
    """
    global _program
    if not are_several():
        yield
        return
    _program, code = program, 1
    try:
        yield
    except SystemExit as ended:
        code = exit_code(ended)
        raise
    except Exception:
        if failed_elsewhere(5):
            raise SystemExit(2) from None
        raise
    finally:
        if _lifeline is not None:
            _lifeline.end(code)


def failed_elsewhere(seconds: float) -> bool:
    """Whether another process failed, and has said why; waits so long for the news.

    An error of communication is what the others see of it. If one died, this process says so and ends here.
    """
    return _lifeline is not None and _lifeline.failed_elsewhere(seconds)


def is_said_by_main() -> bool:
    """Whether the main process fails or stops too, and so says why for all."""
    return _lifeline is not None and _lifeline.rank > 0 and _lifeline.failed_elsewhere(3)


def recording(folder: Path, record: Callable[[str], None]) -> AbstractContextManager[None]:
    """Within this context a run's record gets the reason if this process ends because another one died."""
    return nullcontext() if _lifeline is None else _lifeline.recording(folder, record)


def are_several() -> bool:
    """Whether a launcher started this process as one of several; joins nobody."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def make_accelerator(precision: Precision, log_with: list[Any] | None = None) -> Accelerator:
    """Device placement, precision and communication of a run.

    Raises:
        ValueError: float16 without a GPU.
    """
    state = this_process()
    if precision == "float16" and state.device.type == "cpu":
        raise ValueError(
            "optimisation.precision: float16 needs a GPU, found none; use bfloat16 or float32"
        )
    return Accelerator(
        mixed_precision=_PRECISIONS[precision], cpu=state.device.type == "cpu", log_with=log_with
    )


def on_main(function: Callable[[], Value]) -> Value:
    """Run a function on the main process; every process gets what it returned. May be nested.

    Raises:
        FailedElsewhereError: on the other processes, where the main one raised an error of its own.
    """
    global _main_is_alone
    state = this_process()
    if state.num_processes == 1 or _main_is_alone:
        return function()
    answer: list[Any] = [None, None]
    failure: BaseException | None = None
    if state.is_main_process:
        _main_is_alone = True
        try:
            answer = [True, function()]
        except BaseException as error:
            answer, failure = [False, exit_code(error)], error
        finally:
            _main_is_alone = False
    broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if not answer[0]:
        raise FailedElsewhereError(answer[1])
    return cast(Value, answer[1])


def exit_code(error: BaseException) -> int:
    """The code that a process ends with after an error."""
    code = getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 2)
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def copy_of(model: str) -> str:
    """Where every process can read a model. Every process calls this.

    Args:
        model: a folder of the main process, or else a hub id, which stays as it is. A process that finds no such
            folder, as on another machine, receives its files, but for what is in folders inside it.
    """
    state, path = this_process(), Path(model)
    if state.num_processes == 1 or _main_is_alone or not on_main(path.is_dir):
        return model
    lacks = not path.is_dir()
    if not any(gather_object([lacks])):
        return model
    sizes = on_main(
        lambda: {one.name: one.stat().st_size for one in sorted(path.iterdir()) if one.is_file()}
    )
    if lacks:
        _received.append(tempfile.TemporaryDirectory(prefix="comet-"))
    for name, size in sizes.items():
        _send(path / name, Path(_received[-1].name) / name if lacks else None, size, state)
    return _received[-1].name if lacks else model


def _send(source: Path, target: Path | None, size: int, state: PartialState) -> None:
    """Broadcast a file of the main process, block by block, to those that give a target."""
    with (
        source.open("rb") if state.is_main_process else nullcontext() as read,
        target.open("wb") if target is not None else nullcontext() as written,
    ):
        for start in range(0, size, _BLOCK):
            block = torch.empty(min(_BLOCK, size - start), dtype=torch.uint8)
            if read is not None:
                block = torch.frombuffer(bytearray(read.read(len(block))), dtype=torch.uint8)
            block = block.to(state.device)
            torch.distributed.broadcast(block, src=0)
            if written is not None:
                written.write(block.cpu().numpy().tobytes())


def say(text: str) -> None:
    """Print on the main process alone."""
    if this_process().is_main_process:
        print(text, flush=True)


def step_totals(pieces: list[Batch], accelerator: Accelerator) -> Counts:
    """Counts that a step is averaged over: of all micro-batches of all processes, without waiting for the device."""
    if accelerator.num_processes == 1:
        return total_counts(pieces)
    own = torch.tensor(summed_counts(pieces), device=accelerator.device)
    together = cast(Tensor, accelerator.reduce(own, reduction="sum"))
    return Counts(*together.clamp(min=1).unbind())


def summed(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """The sums over processes of tensors of the same names, in the same order, and shapes."""
    if accelerator.num_processes == 1:
        return dict(tensors)
    return {
        name: cast(Tensor, accelerator.reduce(tensors[name].clone(), reduction="sum"))
        for name in tensors
    }


def any_process(flags: Tensor, accelerator: Accelerator) -> list[bool]:
    """Which of some flags, 0 or 1, are set on at least one process. Waits for the device."""
    if accelerator.num_processes > 1:
        flags = accelerator.reduce(flags, reduction="sum")
    return [flag > 0 for flag in flags.tolist()]


def gathered(value: Value, accelerator: Accelerator) -> list[Value]:
    """The value of every process, in order."""
    if accelerator.num_processes == 1:
        return [value]
    return cast(list[Value], gather_object([value]))


def from_main(tensors: Mapping[str, Tensor] | None, accelerator: Accelerator) -> dict[str, Tensor]:
    """Tensors that the main process holds on the CPU, and the others pass None for, on every process."""
    if accelerator.num_processes == 1:
        assert tensors is not None
        return dict(tensors)
    found = dict(tensors or {})
    kinds = [{name: (value.shape, value.dtype) for name, value in found.items()}]
    broadcast_object_list(kinds)
    for name, (shape, dtype) in kinds[0].items():
        value = found.get(name, torch.empty(shape, dtype=dtype)).to(accelerator.device)
        torch.distributed.broadcast(value, src=0)
        found[name] = value.cpu()
    return found


def named_device(name: str | None) -> torch.device:
    """The device that a user named; None for the accelerator that is there, else the CPU.

    Raises:
        ValueError: there is no such.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device: got {name!r}, which cannot be used: {reason}") from error
