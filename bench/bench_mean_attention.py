"""mean_attention: query and key as an attention layer holds them, against every head's map in plain torch.

The maps of a teacher are those without gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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
    query, key = (
        random(case, batch, length, heads, width).transpose(1, 2).requires_grad_(case.tracked)
        for _ in "qk"
    )
    gradient = torch.randn(batch, length, length, device=case.device)
    return {"query": query, "key": key, "gradient": gradient}


def work(case: Case) -> Work:
    """Query times key; of the backward, the map's gradient times either."""
    batch, heads, length, width = (case.sizes[letter] for letter in "BHSD")
    numbers, map_bytes = 2 * batch * heads * length * width, 4 * batch * length**2
    inputs, product = numbers * case.dtype.itemsize, numbers * length
    return work_of(
        case, Work(inputs + map_bytes, product), Work(2 * inputs + map_bytes, 2 * product)
    )


def _with_gradient(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def attention(query: Tensor, key: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return function(query, key), gradient

    return attention


OP = Op(
    "mean_attention",
    set_up,
    work,
    {
        "comet": Implementation(_with_gradient(comet_kernels.mean_attention)),
        "torch": Implementation(_with_gradient(reference.mean_attention)),
        "torch.compile": peers.compiled(_with_gradient(reference.mean_attention)),
    },
)
QUICK = Case({"B": 2, "H": 4, "S": 128, "D": 64})
CASES = in_every_direction(
    Case({"B": 8, "H": 16, "S": 512, "D": 64}),
    *(
        Case({"B": 32, "H": 16, "S": length, "D": 64}, torch.bfloat16, "cuda")
        for length in (128, 512, 2048)
    ),
)
SWEEP = [
    *(Case({"B": 4, "H": 16, "S": length, "D": 64}) for length in (64, 128, 256, 512, 1024)),
    *(
        Case({"B": 8, "H": 16, "S": length, "D": 64}, torch.bfloat16, "cuda")
        for length in (128, 256, 512, 1024, 2048, 4096)
    ),
]


def bench_mean_attention(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
