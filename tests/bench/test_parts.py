"""Time by part: whose it is, in forward and backward, and that it adds up."""

import math
from types import SimpleNamespace

import pytest
import torch

from bench import parts
from bench.steps import TINY, VARIANTS, make_step

USUAL = {"teacher", "student", "head and KL", "attention", "projection", "optimizer", "other"}


class Watch:
    """Time that passes only where a test says so."""

    now = 0

    def nap(self, seconds):
        self.now += seconds


@pytest.fixture
def watch(monkeypatch):
    found = Watch()
    monkeypatch.setattr(parts, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


class Slow(torch.autograd.Function):
    """The same number, after one second in forward and ten in backward."""

    @staticmethod
    def forward(ctx, x, watch):
        ctx.watch = watch
        watch.nap(1)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.watch.nap(10)
        return gradient, None


def test_a_part_has_its_forward_and_its_backward(watch):
    clock = parts.Clock("cpu")
    x = torch.ones(3, requires_grad=True)
    with clock.running() as seconds:
        before = Slow.apply(x, watch)
        inner = parts.timed(clock, "inner", Slow.apply)(before, watch)
        outer = parts.timed(clock, "outer", lambda x: Slow.apply(Slow.apply(x, watch), watch))(
            inner
        )
        with clock.part("rest"):
            outer.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert seconds == {"other": 1, "inner": 11, "outer": 22, "rest": 10}


def test_a_part_within_another_is_taken_from_it(watch):
    clock = parts.Clock("cpu")
    with clock.running() as seconds, clock.part("outer"):
        watch.nap(1)
        with clock.part("inner"):
            watch.nap(10)
        watch.nap(100)
    assert seconds == {"other": 0, "outer": 101, "inner": 10}


def test_of_another_use_of_a_tensor_nothing_is_counted(watch):
    clock = parts.Clock("cpu")
    x = torch.ones(3, requires_grad=True)
    with clock.running() as seconds:
        shared = x * 1
        elsewhere = Slow.apply(shared, watch)
        found = parts.timed(clock, "part", Slow.apply)(shared, watch)
        with clock.part("rest"):
            (elsewhere + found).sum().backward()
    assert seconds["part"] == 11


def test_a_clock_that_does_not_run_changes_nothing():
    clock, x = parts.Clock("cpu"), torch.ones(3, requires_grad=True)
    assert clock.after_backward_of("part", x) is x
    with clock.part("part"):
        pass
    assert not clock.seconds


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_a_step_is_there(variant):
    found = make_step(variant, TINY).parts()
    assert found.keys() == USUAL
    assert all(seconds > 0 for seconds in found.values())
    assert math.isfinite(sum(found.values()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_change_no_gradient(variant):
    timed, plain = make_step(variant, TINY), make_step(variant, TINY)
    timed.parts()
    plain.step()
    torch.testing.assert_close(timed.loss(), plain.loss(), rtol=1e-6, atol=0)
