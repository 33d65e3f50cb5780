"""What of an op is timed in each direction."""

from dataclasses import replace

import torch
from torch import Tensor

from bench import bench_linear_softened_kl, bench_softened_kl, conftest, memory
from bench.cases import Case, in_every_direction, random, timed_part

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


def test_constant_inputs_are_of_one_number_and_still_trained():
    case = Case({"N": 3}, constant=True)
    found = random(case, 3, 4, scale=0.5, grad=True)
    assert found.requires_grad
    assert found.unique().tolist() == [0.5]
    assert random(Case({"N": 3}), 3, 4).unique().numel() == 12


def test_what_the_cpu_has_no_minutes_for():
    def timed(first, quick=False, sweep=False):
        implementations = bench_linear_softened_kl.OP.implementations
        return {
            name
            for name, one in implementations.items()
            if conftest._is_timed_on_the_cpu(name, one, first, quick, sweep)
        } & {"comet", "torch", "torch.compile", "products"}

    assert timed(first=True) == {"comet", "torch", "torch.compile", "products"}
    assert timed(first=False) == {"comet", "torch"}
    assert timed(first=True, quick=True) == {"comet", "torch", "products"}
    assert timed(first=False, sweep=True) == {"comet", "torch", "products"}


def test_inputs_are_made_once_for_every_direction_of_a_case(pytestconfig):
    made = []

    def set_up(case):
        made.append(case)
        return {"x": torch.ones(3, requires_grad=case.tracked)}

    op = replace(bench_softened_kl.OP, name="noted", set_up=set_up)
    both, without = (Case({"N": 3}, direction=one) for one in ("both", "no-grad"))
    first = conftest._inputs(pytestconfig, op, without)["x"]
    second = conftest._inputs(pytestconfig, op, both)["x"]
    assert (first.requires_grad, second.requires_grad) == (False, True)
    assert first.data_ptr() == second.data_ptr()
    conftest._inputs(pytestconfig, op, Case({"N": 4}))
    assert [case.sizes["N"] for case in made] == [3, 4]
