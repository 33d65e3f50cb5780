"""attention_mse: from query and key of both models to the squared error of their head-averaged maps.

The distance of attention as a whole, without a projection; the teacher's map is made without gradient. Its peer is
TextBrewer's `att_mse_sum`, which takes the maps of every head.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import comet_kernels
from bench import peers
from bench.cases import (
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
    batch, heads, length, width = (case.sizes[letter] for letter in "BHSD")
    return {
        f"{side}_{name}": random(case, batch, length, heads, width)
        .transpose(1, 2)
        .requires_grad_(case.tracked and side == "student")
        for side in ("student", "teacher")
        for name in ("query", "key")
    }


def work(case: Case) -> Work:
    """Query times key of both models; of the backward, the gradient of the student's scores times either."""
    batch, heads, length, width = (case.sizes[letter] for letter in "BHSD")
    numbers = 2 * batch * heads * length * width  # of a model's query and key
    both = Work(2 * numbers * case.dtype.itemsize, 2 * numbers * length)
    return work_of(case, both, both)


def distance(
    mean_attention: Callable[[Tensor, Tensor], Tensor],
    student_query: Tensor,
    student_key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
) -> Tensor:
    """Both maps by one of the two `mean_attention`, then torch."""
    with torch.no_grad():
        teacher_map = mean_attention(teacher_query, teacher_key)
    return mse_loss(mean_attention(student_query, student_key), teacher_map)


OP = Op(
    "attention_mse",
    set_up,
    work,
    {
        "comet": Implementation(partial(distance, comet_kernels.mean_attention)),
        "torch": Implementation(partial(distance, reference.mean_attention)),
        "torch.compile": peers.compiled(partial(distance, reference.mean_attention)),
        "textbrewer": peers.textbrewer(peers.textbrewer_att_mse_sum),
    },
)
QUICK = Case({"B": 2, "H": 4, "S": 64, "D": 32})
CASES = in_every_direction(
    Case({"B": 8, "H": 16, "S": 256, "D": 64}),
    Case({"B": 32, "H": 16, "S": 512, "D": 64}, torch.bfloat16, "cuda"),
)
SWEEP = [
    *(Case({"B": 4, "H": 16, "S": length, "D": 64}) for length in (64, 128, 256, 512)),
    *(
        Case({"B": 8, "H": 16, "S": length, "D": 64}, torch.bfloat16, "cuda")
        for length in (128, 256, 512, 1024, 2048)
    ),
]


def bench_attention_mse(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
