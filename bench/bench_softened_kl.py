"""softened_kl: logits of the paper's vocabulary, against `log_softmax` twice and their divergence in plain torch."""

import torch

import comet_kernels
from bench.cases import Case, Implementation, Measure, Op, Tensors, random
from comet_kernels import reference

TEMPERATURE = 2.0


def set_up(case: Case) -> Tensors:
    torch.manual_seed(0)
    shape = case.sizes["N"], case.sizes["V"]
    return {
        "student_logits": random(case, *shape, scale=2, grad=True),
        "teacher_logits": random(case, *shape, scale=2),
        "temperature": torch.full((shape[0],), TEMPERATURE, device=case.device),
    }


OP = Op(
    "softened_kl",
    set_up,
    {
        "comet": Implementation(comet_kernels.softened_kl),
        "torch": Implementation(reference.softened_kl),
    },
)
QUICK = Case({"N": 32, "V": 20_011})
CASES = [
    Case({"N": 512, "V": 250_002}),
    Case({"N": 4096, "V": 250_002}, torch.bfloat16, "cuda"),
]


def bench_softened_kl(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
