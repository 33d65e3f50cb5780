"""projected_mse: the Kronecker sum in native code, against einsum in plain torch and against the dense matrix."""

import functools

import torch
from torch import Tensor, nn

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
    """Attention maps, and factors near the identity."""
    torch.manual_seed(0)
    batch, size, terms = (case.sizes[letter] for letter in "BSK")
    student, teacher = (random(case, batch, size, size, scale=2).softmax(-1) for _ in "st")
    left, right = (
        torch.eye(size, dtype=case.dtype, device=case.device)
        + random(case, terms, size, size, scale=0.1)
        for _ in "lr"
    )
    return {
        "student_map": student.requires_grad_(case.tracked),
        "teacher_map": teacher,
        "left": left.requires_grad_(case.tracked),
        "right": right.requires_grad_(case.tracked),
    }


def work(case: Case) -> Work:
    """Two products a term give the map, four more the gradients of the map and of both factors."""
    batch, size, terms = (case.sizes[letter] for letter in "BSK")
    maps, factors = (count * size**2 * case.dtype.itemsize for count in (batch, 2 * terms))
    product = 2 * batch * terms * size**3
    return work_of(
        case,
        Work(2 * maps + factors, 2 * product),
        Work(3 * maps + 2 * factors, 4 * product),
    )


def as_one_matrix(tensors: Tensors) -> Tensors:
    """The same map as the S² × S² matrix Σ_k L_k ⊗ R_k.

    Raises:
        ValueError: it would not fit into memory.
    """
    left, right = tensors["left"].detach(), tensors["right"].detach()
    size = left.shape[-1]
    _dense(size)
    weight = torch.einsum("kip,kjq->ijpq", left, right).reshape(size**2, size**2)
    maps = {name: tensors[name] for name in ("student_map", "teacher_map")}
    return {**maps, "weight": weight.requires_grad_(tensors["left"].requires_grad)}


def dense_mse(student_map: Tensor, teacher_map: Tensor, weight: Tensor) -> Tensor:
    """The paper's projection, as `comet` has it for comparison."""
    from comet.projections import masked_mse

    dense = _dense(student_map.shape[-1])
    projected = torch.func.functional_call(dense, {"weight": weight}, (student_map,))
    return masked_mse(projected, teacher_map, None)


@functools.cache
def _dense(size: int) -> nn.Module:
    from comet.projections import Dense

    with torch.device("meta"):
        return Dense(size)


OP = Op(
    "projected_mse",
    set_up,
    work,
    {
        "comet": Implementation(comet_kernels.projected_mse),
        "torch": Implementation(reference.projected_mse),
        "torch.compile": peers.compiled(reference.projected_mse),
        "dense": Implementation(dense_mse, prepare=as_one_matrix),
    },
)
QUICK = Case({"B": 4, "S": 32, "K": 2})
CASES = [
    *in_every_direction(Case({"B": 32, "S": 128, "K": 4})),
    Case({"B": 8, "S": 512, "K": 4}),
    Case({"B": 2, "S": 1024, "K": 4}),
    *in_every_direction(
        *(
            Case({"B": batch, "S": size, "K": 4}, device="cuda")
            for batch, size in ((64, 128), (16, 512), (8, 1024))
        )
    ),
]
SWEEP = [
    Case({"B": batch, "S": size, "K": terms}, device=device)
    for device, batch, lengths in (
        ("cpu", 8, (64, 128, 256, 512)),
        ("cuda", 16, (64, 128, 256, 512, 1024)),
    )
    for size, terms in (*((size, 4) for size in lengths), *((128, k) for k in (1, 2, 8, 16)))
]


def bench_projected_mse(measure: Measure, case: Case, implementation: str) -> None:
    measure(OP, case, implementation)
