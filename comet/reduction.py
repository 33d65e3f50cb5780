"""Linear algebra of making an encoder smaller: what is kept of a space, of a head, of a product, by second moments.

A moment is `[n + 1, n + 1]`: the mean over tokens of [x; 1] [x; 1]ᵀ. Everything is float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 16384  # of an embedding table that are float64 at once
_RIDGE = 1e-3  # of the mean square of what is regressed on
_SMALLEST = 1e-10  # relative eigenvalue below which a direction does not occur


class Fit(NamedTuple):
    """An affine map: weight `[out, in]` and bias `[out]`."""

    weight: Tensor
    bias: Tensor


def second(moment: Tensor, *, centred: bool = False) -> Tensor:
    """`[n, n]`: E x xᵀ, or the covariance."""
    found = moment[:-1, :-1]
    return found - torch.outer(moment[:-1, -1], moment[-1, :-1]) if centred else found


def through(moment: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The moment of `weight · x + bias`."""
    row = torch.zeros(1, moment.shape[0], dtype=moment.dtype)
    row[0, -1] = 1
    shift = torch.zeros(len(weight)) if bias is None else bias
    joint = torch.cat([torch.cat([weight, shift.to(moment)[:, None]], 1), row])
    return joint @ moment @ joint.T


def gram(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """`[n, n]` float64: the sum of x xᵀ over rows `[N, n]` of any precision, each times its weight `[N]`."""
    found = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS].double()
        times = some if weights is None else some * weights[first : first + ROWS, None]
        found += some.T @ times
    return found


def basis_of(second_moment: Tensor, size: int) -> Tensor:
    """The orthonormal columns `[n, size]` that keep most of what has this second moment `[n, n]`.

    The direction of ones is one of them and goes to the direction of ones, so that a LayerNorm before and after
    subtracts the same mean; the others are principal directions at right angles to it. The reflection that brings ones
    to the last axis leaves the others nearly parallel to the axes.
    """
    full = len(second_moment)
    if size == full:
        return torch.eye(full, dtype=second_moment.dtype)
    ones = torch.full((full, 1), full**-0.5, dtype=second_moment.dtype)
    centre = torch.eye(full, dtype=second_moment.dtype) - ones @ ones.T
    _, vectors = torch.linalg.eigh(centre @ second_moment @ centre)
    kept = vectors[:, full - size + 1 :].flip(1)
    kept = torch.linalg.qr(torch.cat([ones, kept], 1)).Q[:, 1:]
    mirror = torch.full((size,), -(size**-0.5), dtype=second_moment.dtype)
    mirror[-1] += 1
    mirror /= mirror.norm()
    reflection = torch.eye(size, dtype=second_moment.dtype) - 2 * torch.outer(mirror, mirror)
    return torch.cat([kept, ones], 1) @ reflection


def refit(target: Tensor, start: Tensor, kept: Tensor, moment: Tensor, *, intercept: bool) -> Fit:
    """The affine map of `kept · x` nearest to `target · x` by least squares, drawn towards `start`.

    Args:
        target: `[out, n]`.
        start: `[out, k]`, what it would be if x had nothing besides what is kept.
        kept: `[k, n]`.
        moment: of x.
        intercept: whether there may be a bias; else it is 0.
    """
    spread = second(moment, centred=intercept)
    missed = target - start @ kept
    own = kept @ spread @ kept.T
    own = own + _RIDGE * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
    weight = start + torch.linalg.solve(own, kept @ spread @ missed.T).T
    bias = torch.zeros(len(target), dtype=target.dtype)
    if intercept:
        bias = (target - weight @ kept) @ moment[:-1, -1]
    return Fit(weight, bias)


def root(positive: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric (or Hermitian) square root of a positive semidefinite matrix, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(positive)
    occurs = values > _SMALLEST * values.max().clamp_min(1e-300)
    roots = torch.where(occurs, values, 0.0).sqrt()
    inverse = torch.where(occurs, roots, 1.0).reciprocal() * occurs
    return (vectors * roots) @ vectors.mH, (vectors * inverse) @ vectors.mH


def reduced_product(query: Tensor, key: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Maps `[size, n]` of queries and of keys that keep most of qᴴk, where both have these second moments `[n, n]`.

    With q = Q^½ q̃ and k = K^½ k̃ of unit second moment, qᴴk = q̃ᴴ (Q^½ K^½) k̃, of which a truncated singular value
    decomposition is the best approximation in the mean square over independent tokens.
    """
    query_root, query_inverse = root(query)
    key_root, key_inverse = root(key)
    left, values, right = torch.linalg.svd(query_root @ key_root)
    scale = values[:size].sqrt().to(left.dtype)[:, None]
    return scale * left[:, :size].mH @ query_inverse, scale * right[:size] @ key_inverse


def rotary_product(
    query: Tensor, key: Tensor, own: Tensor, theirs: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for queries and keys that are rotated by position: `[size, n]` each.

    Entry i and i + n/2 are one complex number that turns with a frequency of its own (Su et al., 2021, RoFormer, arXiv
    2104.09864), so that only those of one frequency may be mixed. Those of a head of the teacher go to the student's
    nearest frequency; of those that meet there, the best product of rank one is kept, in complex numbers.

    Args:
        query: `[n, n]` second moment of queries before rotation.
        key: likewise.
        own: `[size / 2]` frequencies of the student.
        theirs: `[n / 2]` of the teacher.
    """
    distance = (own.log()[:, None] - theirs.log()[None, :]).abs()
    nearest = distance.argmin(0)
    maps = torch.zeros(2, len(own), len(theirs), dtype=torch.complex128)
    for pair in range(len(own)):
        members = (nearest == pair).nonzero()[:, 0]
        if len(members) == 0:
            members = distance[pair].argmin()[None]
        queries, keys = (_complex_moment(one, members, len(theirs)) for one in (query, key))
        found = (maps.new_ones(1, 1), maps.new_ones(1, 1))
        if len(members) > 1:
            found = reduced_product(queries, keys, 1)
        for which, one in enumerate(found):
            maps[which, pair, members] = one[0]
    return _as_real(maps[0]), _as_real(maps[1])


def _complex_moment(moment: Tensor, members: Tensor, half: int) -> Tensor:
    """E z zᴴ of z = x[members] + i x[members + half]."""
    real, imaginary = members, members + half
    same = moment[real][:, real] + moment[imaginary][:, imaginary]
    return torch.complex(same, moment[imaginary][:, real] - moment[real][:, imaginary])


def _as_real(maps: Tensor) -> Tensor:
    """A complex matrix on numbers whose real parts come first."""
    return torch.cat([torch.cat([maps.real, -maps.imag], 1), torch.cat([maps.imag, maps.real], 1)])


def reduced_writer(output: Tensor, inputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of a product `output · x` what is left when x `[n]` passes through `size` numbers: maps `[size, n]`, with
    orthonormal rows, and `[out, size]`.

    Args:
        output: `[out, n]`.
        inputs: `[n, n]` second moment of x.
        size: at most n.
    """
    forward, inverse = root(inputs)
    left, values, right = torch.linalg.svd(output @ forward, full_matrices=False)
    mixed, triangle = torch.linalg.qr((right[:size] @ inverse).T)
    return mixed.T, left[:, :size] * values[:size] @ triangle.T
