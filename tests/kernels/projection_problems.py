"""Problems for the factorized projection: maps, factors near the identity, masks, and losses differentiated."""

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(batch, size, terms, largest, *, device="cpu", dtype=torch.float32, grad=True, seed=0):
    """Attention-like student and teacher maps, and factors near the identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    student = (2 * normal(batch, size, size)).softmax(-1).to(device, dtype)
    teacher = (2 * normal(batch, size, size)).softmax(-1).to(device, dtype)
    left, right = (
        torch.eye(largest).expand(terms, -1, -1) / terms + 0.2 * normal(terms, largest, largest)
        for _ in range(2)
    )
    left, right = left.to(device), right.to(device)
    for tensor in (student, left, right):
        tensor.requires_grad_(grad)
    return student, teacher, left, right


def some_mask(batch, size, device="cpu"):
    """Samples of different lengths, the first one whole."""
    lengths = torch.linspace(size, 1, batch).long()
    return (torch.arange(size) < lengths[:, None]).to(device)


def differentiated(function, tensors, dtype, mask=None, weight=-1.7):
    """The loss, and the gradients of `weight` times it: of student map, left and right."""
    student, teacher, left, right = (x.detach().to(dtype).requires_grad_() for x in tensors)
    loss = function(student, teacher, left, right, mask)
    (weight * loss).backward()
    return loss.detach(), student.grad, left.grad, right.grad
