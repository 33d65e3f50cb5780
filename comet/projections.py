"""P, the learnable map from the student's attention map to the teacher's (AfroXLMR-Comet, arXiv 2502.18020).

A projection is a module with `loss(...)`; it is trained with the student, saved in checkpoints and never shipped.
The paper's is `Dense`: one row and one column for every entry of the flattened map. `Kronecker` replaces it by a short
sum of two-sided products, `P(A) = Σ_k L_k A R_kᵀ`: any matrix on vec(A) is such a sum if K is large enough
(Van Loan and Pitsianis, 1993).
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from comet.environment import machine_bytes
from comet.objective_recipe import ObjectiveRecipe
from comet.pretrained import require_finite
from comet.processes import on_main

LARGE_BYTES = 1 << 30  # from here on a projection's size is worth a line


def masked_mse(projected_map: Tensor, teacher_map: Tensor, mask: Tensor | None) -> Tensor:
    """Σ over real pairs of tokens of (P(A_s) − A_t)², over the number of such pairs.

    Args:
        projected_map: `[B, S, S]`.
        teacher_map: `[B, S, S]`.
        mask: `[B, S]` bool, true on real tokens, or None when all are.

    Returns:
        A scalar; 0 where no token is real.
    """
    squares = (projected_map - teacher_map).square()
    if mask is None:
        return squares.mean()
    real_pairs = mask[:, :, None] & mask[:, None, :]
    return squares.where(real_pairs, 0.0).sum() / real_pairs.sum().clamp(min=1)


class Identity(nn.Module):
    """P(A) = A: the student's map is compared as it is."""

    def forward(self, attention_map: Tensor) -> Tensor:
        """`[B, S, S]` to `[B, S, S]`."""
        return attention_map

    def loss(
        self, student_map: Tensor, teacher_map: Tensor, mask: Tensor | None, ops: ModuleType
    ) -> Tensor:
        """Mean squared error of the projected map over real pairs of tokens."""
        return masked_mse(self(student_map), teacher_map, mask)


class Dense(Identity):
    """P(A) = W vec(A), W of S² × S²: the paper's projection, the baseline. Starts as the identity.

    Args:
        max_length: S, the longest sequence; a shorter batch is padded with zeros to it.

    Raises:
        ValueError: weight, gradient and the optimizer's two moments would not fit into this machine's memory.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        needed, there = trained_bytes(max_length**4), memory_bytes()
        size = (
            f"objective.projection: dense at corpus.max_length {max_length} needs "
            f"{needed / 2**30:.1f} GiB with gradient and optimizer state"
        )
        if needed > there:
            raise ValueError(
                f"{size}, this machine has {there / 2**30:.1f} GiB; use kronecker, or a shorter max_length"
            )
        if needed > LARGE_BYTES:
            print(f"{size}; kronecker needs a few MiB", file=sys.stderr, flush=True)
        self.weight = nn.Parameter(torch.eye(max_length**2))

    def forward(self, attention_map: Tensor) -> Tensor:
        """`[B, S, S]` to `[B, S, S]`."""
        length = attention_map.shape[-1]
        flat = _flatten(attention_map, self.max_length)
        return _unflatten(nn.functional.linear(flat, self.weight), length, self.max_length)


class LowRank(Identity):
    """P(A) = U Vᵀ vec(A), U and V of S² × r. Starts as the projection onto a random subspace.

    Args:
        max_length: S, the longest sequence; a shorter batch is padded with zeros to it.
        rank: r.
    """

    def __init__(self, max_length: int, rank: int) -> None:
        super().__init__()
        self.max_length = max_length
        if rank > max_length**2:
            raise ValueError(
                f"objective.projection_rank: got {rank}, expected at most "
                f"corpus.max_length² = {max_length**2}"
            )
        basis, _ = torch.linalg.qr(torch.randn(max_length**2, rank))
        self.left = nn.Parameter(basis.clone())
        self.right = nn.Parameter(basis.clone())

    def forward(self, attention_map: Tensor) -> Tensor:
        """`[B, S, S]` to `[B, S, S]`."""
        length = attention_map.shape[-1]
        flat = _flatten(attention_map, self.max_length)
        return _unflatten(flat @ self.right @ self.left.T, length, self.max_length)


class Kronecker(nn.Module):
    """P(A) = Σ_k L_k A R_kᵀ, the factorized projection: 2 K S² parameters.

    The first term starts as the identity, so training starts from the plain squared error. Of the others R_k
    starts at 0 and L_k small and random: were both 0, neither would get a gradient.

    Args:
        max_length: S_max of `left` and `right`, `[K, S_max, S_max]`; a shorter batch uses their leading corner.
        terms: K.
    """

    def __init__(self, max_length: int, terms: int) -> None:
        super().__init__()
        left = torch.randn(terms, max_length, max_length) * (0.1 / max_length**0.5)
        right = torch.zeros(terms, max_length, max_length)
        left[0] = right[0] = torch.eye(max_length)
        self.left = nn.Parameter(left)
        self.right = nn.Parameter(right)

    def loss(
        self, student_map: Tensor, teacher_map: Tensor, mask: Tensor | None, ops: ModuleType
    ) -> Tensor:
        """Mean squared error of the projected map over real pairs of tokens, by `ops.projected_mse`."""
        loss = ops.projected_mse(student_map, teacher_map, self.left, self.right, mask)
        return cast(Tensor, loss)

    def start_from(self, path: Path) -> None:
        """Take `left` and `right` from a file of `python -m comet.factorize`.

        Raises:
            ValueError: no such file, or of other shapes.
        """
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"objective.projection_start: {path} cannot be read ({error})"
            ) from error
        for name, ours in (("left", self.left), ("right", self.right)):
            shape = list(saved[name].shape) if name in saved else None
            if shape != list(ours.shape):
                raise ValueError(
                    f"objective.projection_start: {path} has {name} {shape or 'not'}, expected "
                    f"{list(ours.shape)}: [projection_terms, corpus.max_length, corpus.max_length]"
                )
            require_finite(name, saved[name], f"objective.projection_start: {path}")
            with torch.no_grad():
                ours.copy_(saved[name])


Projection = Identity | Kronecker


def make_projection(recipe: ObjectiveRecipe, max_length: int) -> Projection:
    """The projection that a recipe asks for, for sequences of up to `max_length` tokens."""
    match recipe.projection:
        case "identity":
            return Identity()
        case "dense":
            return Dense(max_length)
        case "lowrank":
            return LowRank(max_length, recipe.projection_rank)
        case "kronecker":
            kronecker = Kronecker(max_length, recipe.projection_terms)
            if recipe.projection_start is not None:
                start = Path(recipe.projection_start)
                on_main(
                    lambda: kronecker.start_from(start)
                )  # from there DDP sends it to the others
            return kronecker


def _flatten(attention_map: Tensor, max_length: int) -> Tensor:
    missing = max_length - attention_map.shape[-1]
    return nn.functional.pad(attention_map, (0, missing, 0, missing)).flatten(1)


def _unflatten(flat: Tensor, length: int, max_length: int) -> Tensor:
    return flat.view(-1, max_length, max_length)[:, :length, :length]


def trained_bytes(parameters: int) -> int:
    """Bytes of float32 parameters with their gradient and Adam's two moments."""
    return 4 * 4 * parameters


def memory_bytes() -> int:
    """Of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return machine_bytes()
