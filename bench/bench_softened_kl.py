"""softened_kl: logits of the paper's vocabulary, against `log_softmax` twice and their divergence."""

import torch

import comet_kernels
from bench import peers
from bench.cases import (
    TEMPERATURE,
    Case,
    Implementation,
    Measure,
    Op,
    Tensors,
    Work,
    in_every_direction,
    random,
    work_of,
)
from comet_kernels import reference


def set_up(case: Case) -> Tensors:
    torch.manual_seed(0)
    shape = case.sizes["N"], case.sizes["V"]
    return {
        "student_logits": random(case, *shape, scale=2, grad=True),
        "teacher_logits": random(case, *shape, scale=2),
        "temperature": torch.full((shape[0],), TEMPERATURE, device=case.device),
    }


def work(case: Case) -> Work:
    """Logits of both sides are read for the loss, and again for the gradient, which is written."""
    logits = case.sizes["N"] * case.sizes["V"] * case.dtype.itemsize
    return work_of(case, Work(2 * logits, 0), Work(3 * logits, 0))


OP = Op(
    "softened_kl",
    set_up,
    work,
    {
        "comet": Implementation(comet_kernels.softened_kl),
        "torch": Implementation(reference.softened_kl),
        "torch.compile": peers.compiled(reference.softened_kl),
        "liger-kl-div": peers.liger(peers.liger_kl_div),
    },
)
QUICK = Case({"N": 32, "V": 20_011})
CASES = [
    *in_every_direction(
        Case({"N": 128, "V": 250_002}),
        Case({"N": 4096, "V": 250_002}, torch.bfloat16, "cuda"),
    ),
    Case({"N": 512, "V": 250_002}),
]
SWEEP = [
    *(Case({"N": n, "V": 250_002}) for n in (64, 128, 256, 512)),
    *(Case({"N": 256, "V": v}) for v in (31_250, 62_500, 125_000)),
    *(Case({"N": n, "V": 250_002}, torch.bfloat16, "cuda") for n in (512, 1024, 2048, 4096, 8192)),
    *(Case({"N": 4096, "V": v}, torch.bfloat16, "cuda") for v in (31_250, 62_500, 125_000)),
]


def bench_softened_kl(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
