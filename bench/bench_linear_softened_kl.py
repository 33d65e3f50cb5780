"""linear_softened_kl: hidden states and heads of the paper's sizes, against logits held whole in plain torch."""

import torch
from torch import Tensor
from torch.nn.functional import linear

import comet_kernels
from bench.cases import Case, Implementation, Measure, Op, Tensors, random
from comet_kernels import reference

TEMPERATURE = 2.0
LOGIT_DEVIATION = 2.0


def set_up(case: Case) -> Tensors:
    torch.manual_seed(0)
    n, v = case.sizes["N"], case.sizes["V"]
    tensors = {"temperature": torch.full((n,), TEMPERATURE, device=case.device)}
    for side, letter in (("student", "Hs"), ("teacher", "Ht")):
        width, trained = case.sizes[letter], side == "student"
        scale = LOGIT_DEVIATION / width**0.5
        tensors[f"{side}_hidden"] = random(case, n, width, grad=trained)
        tensors[f"{side}_weight"] = random(case, v, width, scale=scale, grad=trained)
        tensors[f"{side}_bias"] = random(case, v, grad=trained)
    return tensors


def products_alone(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """The four matrix products without any loss: the teacher's logits pass for the gradient of the student's."""
    with torch.no_grad():
        teacher_logits = linear(teacher_hidden, teacher_weight, teacher_bias)
    return linear(student_hidden, student_weight, student_bias), teacher_logits


OP = Op(
    "linear_softened_kl",
    set_up,
    {
        "comet": Implementation(comet_kernels.linear_softened_kl),
        "torch": Implementation(reference.linear_softened_kl),
        "products": Implementation(products_alone, same_result=False),
    },
)
QUICK = Case({"N": 32, "Hs": 32, "Ht": 64, "V": 20_011})
CASES = [
    Case({"N": 512, "Hs": 256, "Ht": 1024, "V": 250_002}),
    Case({"N": 4096, "Hs": 256, "Ht": 1024, "V": 250_002}, torch.bfloat16, "cuda"),
]


def bench_linear_softened_kl(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
