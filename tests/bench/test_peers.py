"""Which peers a case is compared with."""

import importlib.util

import pytest
import torch

from bench import bench_linear_softened_kl, bench_softened_kl
from bench.cases import Case

SIZES = {"N": 2, "Hs": 3, "Ht": 4, "V": 5}
ON_GPU = Case(SIZES, torch.bfloat16, "cuda")
UNBIASED = Case(SIZES, torch.bfloat16, "cuda", without="bias")


def reason(name, case):
    return bench_linear_softened_kl.OP.implementations[name].why_not(case)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("name", ["torch.compile", "liger-chunked-jsd", "fla-fused-kl-div"])
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
    forward = Case(case.sizes, torch.bfloat16, without="backward")
    assert bench_softened_kl.work(forward) == (2 * 2 * numbers, 0)


def test_work_of_heads_is_their_products():
    expected = 2 * (2 * 5) * (3 + 4) + 2 * (2 * 2 * 5 * 3)
    assert bench_linear_softened_kl.work(ON_GPU).operations == expected
