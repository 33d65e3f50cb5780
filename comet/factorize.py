"""`python -m comet.factorize`: the short sum of Kronecker products nearest to a trained dense projection.

A dense projection is a matrix W on the flattened map, P(A) = W vec(A), rows first. With the indices of W regrouped (Van
Loan and Pitsianis, 1993), each term of a factorized projection is a matrix of rank one:

    W[(i, j), (p, q)] = Σ_k L_k[i, p] R_k[j, q]        W̃[(i, p), (j, q)] = Σ_k vec(L_k) vec(R_k)ᵀ

so that the K terms nearest to W in the Frobenius norm are the K largest singular triples of W̃ (Eckart and Young, 1936).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comet.checkpoints import TENSORS
from comet.configuration import CommandParser, run_command
from comet.durable import file_aside
from comet.holdings import instead

PROGRAM = "comet.factorize"
MOST_TERMS = 32
EXACT_SIZE = 1024  # rows of W̃ up to which all singular values are computed
SPARE = 16  # directions that a randomized decomposition follows beyond those asked for


class Factorization(NamedTuple):
    """The nearest sum of Kronecker products.

    Attributes:
        left: `[K, S, S]` float32.
        right: `[K, S, S]` float32.
        errors: ‖W − Σ_{k ≤ K} L_k ⊗ R_k‖ / ‖W‖ for one term, two, ... all K.
    """

    left: Tensor
    right: Tensor
    errors: list[float]


def nearest_kronecker(weight: Tensor, terms: int) -> Factorization:
    """The sum of `terms` Kronecker products nearest to a dense projection.

    Beyond 32 × 32 maps the singular triples come from a randomized decomposition (Halko, Martinsson and Tropp, 2011),
    seeded; the errors are those of its result, not estimates.

    Args:
        weight: `[S², S²]`, of any floating dtype.
        terms: K, from 1 to S².

    Raises:
        ValueError: not such a matrix, a number in it that is not finite, or K out of range.
    """
    size = math.isqrt(weight.shape[0])
    if weight.dim() != 2 or weight.shape != (size**2, size**2):
        raise ValueError(
            f"weight: got shape {list(weight.shape)}, expected [S², S²] for maps of S × S"
        )
    if not 1 <= terms <= size**2:
        raise ValueError(f"terms: got {terms}, expected 1 to S² = {size**2}")
    if not weight.isfinite().all():
        raise ValueError("weight: got NaN or infinite entries, expected finite numbers")
    regrouped = weight.float().view(size, size, size, size).transpose(1, 2).reshape(weight.shape)
    lefts, values, rights = _largest_triples(regrouped, terms)
    roots = values.sqrt()
    lefts, rights = (lefts * roots).T.contiguous(), (rights * roots).T.contiguous()
    errors = _relative_errors(regrouped, lefts, rights)
    return Factorization(lefts.view(-1, size, size), rights.view(-1, size, size), errors)


def _largest_triples(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    if len(matrix) <= EXACT_SIZE:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :count], values[:count], right[:count].T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, min(count + SPARE, len(matrix)), niter=6)
    return left[:, :count], values[:count], right[:, :count]


def _relative_errors(matrix: Tensor, lefts: Tensor, rights: Tensor) -> list[float]:
    """What is left of the matrix after each further term, a few rows at a time."""
    whole = 0.0
    remaining = [0.0] * len(lefts)
    for start in range(0, len(matrix), 256):
        rows = matrix[start : start + 256].clone()
        whole += rows.square().sum(dtype=torch.float64).item()
        for k, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            rows.addr_(left[start : start + 256], right, alpha=-1)
            remaining[k] += rows.square().sum(dtype=torch.float64).item()
    return [math.sqrt(square / whole) if whole else 0.0 for square in remaining]


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="Turn a trained dense projection into the nearest sum of Kronecker products.",
    )
    parser.add_argument(
        "source",
        type=Path,
        help="a safetensors file, or a checkpoint of a run (checkpoints/step-N)",
    )
    parser.add_argument("--tensor", help="its name in a file where several could be it")
    parser.add_argument("--terms", type=int, default=8, help="K, the most terms (default: 8)")
    parser.add_argument(
        "--output",
        type=Path,
        help="write left and right as safetensors, for --objective.projection_start",
    )
    given = parser.parse_args(argv)
    if not 1 <= given.terms <= MOST_TERMS:
        raise ValueError(f"--terms: got {given.terms}, expected 1 to {MOST_TERMS}")
    if given.output is not None and given.output.exists():
        raise ValueError(f"--output: {given.output} exists; name another file")
    name, weight = read_dense(given.source, given.tensor)
    size = math.isqrt(len(weight))
    print(f"{name}: {weight.numel():,} parameters, maps of {size} × {size}", flush=True)
    found = nearest_kronecker(weight, min(given.terms, size**2))
    print(f"{'terms':>5} {'parameters':>12} {'relative error':>14}")
    for terms, error in enumerate(found.errors, 1):
        print(f"{terms:5} {2 * terms * size**2:12,} {error:14.4f}")
    if given.output is not None:
        with file_aside(given.output) as partial:
            save_file({"left": found.left, "right": found.right}, partial)
        print(
            f"written  {given.output}\nstart from it with --objective.projection kronecker "
            f"--objective.projection_terms {len(found.left)} "
            f"--objective.projection_start {given.output}"
        )


def read_dense(source: Path, name: str | None) -> tuple[str, Tensor]:
    """The matrix of a dense projection, and its name.

    Args:
        source: a safetensors file, or a folder that holds a checkpoint.
        name: of the tensor; None if only one has the shape of such a matrix.

    Raises:
        ValueError: no such file or tensor, or more than one.
    """
    path = source
    if source.is_dir():
        path, name = source / TENSORS, name or "module/projection.weight"
    if not path.is_file():
        raise ValueError(f"{path}: no such file{instead(source, 'checkpoint')}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            fitting = [key for key, shape in shapes.items() if _is_dense(shape)]
            if name is None and len(fitting) != 1:
                named = ", ".join(fitting[:8]) or "none"
                raise ValueError(
                    f"{path}: expected one tensor of shape [S², S²], found {named}; "
                    "name one with --tensor"
                )
            chosen = fitting[0] if name is None else name
            if chosen not in shapes:
                raise ValueError(f"--tensor: {path} has no {chosen}; it has {', '.join(shapes)}")
            return chosen, file.get_tensor(chosen)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def _is_dense(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1] > 1 and math.isqrt(shape[0]) ** 2 == shape[0]


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
