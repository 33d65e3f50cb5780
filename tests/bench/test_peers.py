"""Which peers a case is compared with."""

import importlib.util
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from bench import (
    bench_attention_mse,
    bench_factorized_projection,
    bench_linear_softened_kl,
    bench_mean_attention,
    bench_softened_kl,
)
from bench.cases import DIRECTIONS, Case, differentiate, oracle
from bench.judge import largest_error

MODULES = [
    bench_attention_mse,
    bench_factorized_projection,
    bench_linear_softened_kl,
    bench_mean_attention,
    bench_softened_kl,
]

SIZES = {"N": 2, "Hs": 3, "Ht": 4, "V": 5}
ON_GPU = Case(SIZES, torch.bfloat16, "cuda")
UNBIASED = Case(SIZES, torch.bfloat16, "cuda", without="bias")


def reason(name, case):
    return bench_linear_softened_kl.OP.implementations[name].why_not(case)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_the_compiler_of_torch_needs_one_of_c_plus_plus(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    monkeypatch.delenv("CXX", raising=False)
    assert reason("torch.compile", Case(SIZES)) is None
    monkeypatch.setenv("CXX", "absent")
    assert "no g++ or clang++ on the PATH" in reason("torch.compile", Case(SIZES))
    assert reason("torch.compile", Case(SIZES, device="cuda")) is None


@pytest.mark.parametrize("name", ["liger-chunked-jsd", "liger-fused-jsd", "fla-fused-kl-div"])
def test_never_on_the_cpu(installed, name):
    assert "on a GPU only" in reason(name, Case(SIZES))


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reason("liger-fused-jsd", UNBIASED) == (
        "liger-kernel is not installed: pip install -e '.[peers]'"
    )
    assert "fla-core is not installed" in reason("fla-fused-kl-div", UNBIASED)


def test_heads_with_a_bias_only_where_the_library_takes_one(installed):
    takes_bias = {
        name for name in bench_linear_softened_kl.OP.implementations if not reason(name, ON_GPU)
    }
    assert takes_bias == {"comet", "torch", "torch.compile", "products", "liger-chunked-jsd"}
    assert not any(reason(n, UNBIASED) for n in bench_linear_softened_kl.OP.implementations)


def test_work_of_logits_is_bytes():
    case = bench_softened_kl.QUICK
    numbers = case.sizes["N"] * case.sizes["V"]
    assert bench_softened_kl.work(case) == (5 * 4 * numbers, 0)
    for direction, passes in (("forward", 2), ("no-grad", 2), ("backward", 3)):
        alone = Case(case.sizes, torch.bfloat16, direction=direction)
        assert bench_softened_kl.work(alone) == (passes * 2 * numbers, 0)


def test_work_of_heads_is_their_products():
    expected = 2 * (2 * 5) * (3 + 4) + 2 * (2 * 2 * 5 * 3)
    assert bench_linear_softened_kl.work(ON_GPU).operations == expected


@pytest.mark.parametrize("module", MODULES)
def test_directions_add_up(module):
    both, forward, backward = (
        module.work(replace(module.QUICK, direction=direction))
        for direction in ("both", "forward", "backward")
    )
    assert both == tuple(map(sum, zip(forward, backward, strict=True)))


@pytest.mark.parametrize("module", MODULES)
def test_a_sweep_has_the_implementations_and_letters_of_its_op(module):
    assert all(case.sizes.keys() == module.QUICK.sizes.keys() for case in module.SWEEP)
    assert {case.direction for case in module.CASES} == set(DIRECTIONS)
    assert {case.direction for case in module.SWEEP} == {"both"}


def test_textbrewer_is_named_with_the_remedy_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    implementation = bench_attention_mse.OP.implementations["textbrewer"]
    assert implementation.why_not(bench_attention_mse.QUICK) == (
        "textbrewer is not installed: pip install -e '.[peers]'"
    )


@pytest.fixture
def textbrewer(monkeypatch):
    """The package, or where it is absent a module with what its source says that the loss is."""
    if importlib.util.find_spec("textbrewer"):
        return
    losses = types.ModuleType("textbrewer.losses")
    losses.att_mse_sum_loss = lambda student, teacher: mse_loss(student.sum(1), teacher.sum(1))
    monkeypatch.setitem(sys.modules, "textbrewer", types.ModuleType("textbrewer"))
    monkeypatch.setitem(sys.modules, "textbrewer.losses", losses)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_textbrewer_computes_the_distance_of_mean_maps(textbrewer, dtype, limit):
    op = bench_attention_mse.OP
    tensors = op.set_up(replace(bench_attention_mse.QUICK, dtype=dtype))
    found = differentiate(op.implementations["textbrewer"].function, tensors)
    expected = oracle(op, tensors)
    assert expected.keys() == {"output", "student_query", "student_key"}
    assert largest_error("textbrewer", found, expected, tensors, dtype) < limit
