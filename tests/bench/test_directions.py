"""What of an op is timed in each direction."""

import torch
from torch import Tensor

from bench import bench_softened_kl, memory
from bench.cases import Case, in_every_direction, timed_part

PASSES: list[str] = []


class Noted(torch.autograd.Function):
    """Twice its input, and a note of every pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        PASSES.append("forward")
        return 2 * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        PASSES.append("backward")
        return 2 * gradient


def passes_of(direction):
    """Those before the timed part, and those of it."""
    PASSES.clear()
    case = Case({"N": 3}, direction=direction)
    call = timed_part(
        direction, lambda x: Noted.apply(x).sum(), {"x": torch.ones(3, requires_grad=case.tracked)}
    )
    before = list(PASSES)
    call()
    return before, PASSES[len(before) :]


def test_each_direction_times_its_passes_alone():
    assert passes_of("both") == ([], ["forward", "backward"])
    assert passes_of("forward") == ([], ["forward"])
    assert passes_of("backward") == (["forward"], ["backward"])
    assert passes_of("no-grad") == ([], ["forward"])


def test_forward_keeps_what_backward_needs_and_no_grad_does_not():
    kept = {}
    for direction in ("forward", "no-grad"):
        tracked = Case({"N": 3}, direction=direction).tracked
        tensors = {"x": torch.ones(3, requires_grad=tracked)}
        kept[direction] = timed_part(direction, lambda x: x.exp().sum(), tensors)()
    assert kept["forward"].output.requires_grad
    assert not kept["no-grad"].output.requires_grad


def test_directions_share_their_inputs_and_not_their_names():
    cases = in_every_direction(Case({"N": 3}, without="bias"))
    assert len({str(case) for case in cases}) == 4
    assert {case.inputs for case in cases} == {"N3-float32-cpu-no-bias"}


def test_extra_memory_of_backward_counts_what_forward_kept():
    case = Case({"N": 64, "V": 50_021}, direction="backward")
    module = "bench.bench_softened_kl"
    extra = memory.extra_bytes_on_cpu(module, bench_softened_kl.QUICK, case, "torch")
    logits = 4 * 64 * 50_021
    assert extra is None or 2.5 * logits < extra, "gradient, and two log-softmaxes at the least"
