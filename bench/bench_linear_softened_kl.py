"""linear_softened_kl: hidden states and heads of the paper's sizes, against logits held whole in plain torch.

Of other libraries only one takes the biases of heads; all are compared in the case without them. Comet's forward yields
the gradients too, so that either direction alone says little; on the CPU they are left out.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

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

LOGIT_DEVIATION = 2.0
NO_BIAS: dict[str, Any] = {"student_bias": None, "teacher_bias": None}  # unless the case has them


def set_up(case: Case) -> Tensors:
    torch.manual_seed(0)
    n, v = case.sizes["N"], case.sizes["V"]
    tensors = {"temperature": torch.full((n,), TEMPERATURE, device=case.device)}
    for side, letter in (("student", "Hs"), ("teacher", "Ht")):
        width, trained = case.sizes[letter], side == "student"
        scale = LOGIT_DEVIATION / width**0.5
        tensors[f"{side}_hidden"] = random(case, n, width, grad=trained)
        tensors[f"{side}_weight"] = random(case, v, width, scale=scale, grad=trained)
        if case.without != "bias":
            tensors[f"{side}_bias"] = random(case, v, grad=trained)
    return tensors


def work(case: Case) -> Work:
    """Two products give the logits, two of the student's size its gradients, which one pass can yield with the loss.

    Gradients count as backward's, whose floor takes the logits for known; where forward yields them, only "both" is to
    be compared.
    """
    n, v, student, teacher = (case.sizes[letter] for letter in ("N", "V", "Hs", "Ht"))
    read, written = (
        (n + v) * width * case.dtype.itemsize for width in (student + teacher, student)
    )
    return work_of(
        case,
        Work(read, 2 * n * v * (student + teacher)),
        Work(written, 4 * n * v * student),
    )


def products_alone(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """The four matrix products without any loss: the teacher's logits pass for the gradient of the student's."""
    with torch.no_grad():
        teacher_logits = linear(teacher_hidden, teacher_weight, teacher_bias)
    return linear(student_hidden, student_weight, student_bias), teacher_logits


OP = Op(
    "linear_softened_kl",
    set_up,
    work,
    {
        "comet": Implementation(partial(comet_kernels.linear_softened_kl, **NO_BIAS)),
        "torch": Implementation(partial(reference.linear_softened_kl, **NO_BIAS)),
        "torch.compile": peers.compiled(reference.linear_softened_kl, **NO_BIAS),
        "products": Implementation(partial(products_alone, **NO_BIAS), same_result=False),
        "liger-chunked-jsd": peers.liger(peers.liger_chunked_jsd),
        "liger-fused-jsd": peers.liger(peers.liger_fused_jsd, with_bias=False),
        "liger-fused-kl-div": peers.liger(peers.liger_fused_kl_div, with_bias=False),
        "fla-fused-kl-div": peers.flash_linear_attention(peers.fla_fused_kl_div, with_bias=False),
    },
)
QUICK = Case({"N": 32, "Hs": 32, "Ht": 64, "V": 20_011})
WIDTHS = {"Hs": 256, "Ht": 1024}
CASES = [
    Case({"N": 128, **WIDTHS, "V": 250_002}),
    Case({"N": 128, **WIDTHS, "V": 250_002}, direction="no-grad"),
    *in_every_direction(
        Case({"N": 4096, **WIDTHS, "V": 250_002}, torch.bfloat16, "cuda"),
        Case({"N": 4096, **WIDTHS, "V": 250_002}, torch.bfloat16, "cuda", without="bias"),
    ),
    Case({"N": 256, **WIDTHS, "V": 250_002}),
]
SWEEP = [
    *(Case({"N": n, **WIDTHS, "V": 250_002}) for n in (64, 128, 256, 512)),
    *(Case({"N": 256, **WIDTHS, "V": v}) for v in (31_250, 62_500, 125_000)),
    *(
        Case({"N": n, **WIDTHS, "V": 250_002}, torch.bfloat16, "cuda", without="bias")
        for n in (512, 1024, 2048, 4096, 8192)
    ),
    *(
        Case({"N": 4096, **WIDTHS, "V": v}, torch.bfloat16, "cuda", without="bias")
        for v in (31_250, 62_500, 125_000)
    ),
]


def bench_linear_softened_kl(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
