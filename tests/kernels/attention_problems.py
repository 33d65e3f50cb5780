"""Queries, keys, gradients and masks for tests of `mean_attention`, and how its results are judged."""

import torch
from accuracy import assert_accurate

from comet_kernels.ops.mean_attention import reference


def make(batch, heads, sequence, head_size, dtype=torch.float32, device="cpu"):
    """Query and key as a layer hands them over: [B, S, H, D] transposed; and a gradient of the map."""
    shape = (batch, sequence, heads, head_size)
    query, key = (torch.randn(shape, device=device).to(dtype).transpose(1, 2) for _ in range(2))
    return query, key, torch.randn(batch, sequence, sequence, device=device)


def padded(lengths, sequence, device="cpu"):
    return torch.arange(sequence, device=device) < torch.tensor(lengths, device=device)[:, None]


def evaluate(implementation, query, key, gradient, mask=None, scale=0.25, needs=(True, True)):
    """Map, dQ and dK without the op around them."""
    forward, backward = implementation.forward, implementation.backward
    found = forward(query, key, mask, scale)
    attention, statistics = (
        (found, ()) if isinstance(found, torch.Tensor) else (found[0], found[1:])
    )
    return attention, *backward(gradient, query, key, mask, *statistics, scale, needs)


def run(function, query, key, gradient, mask=None, **options):
    query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
    attention = function(query, key, mask, **options)
    attention.backward(gradient.to(attention.dtype))
    return attention.detach(), query.grad, key.grad


def judge(found, query, key, gradient, mask=None, slack=2, **options):
    """Against float64 and, unless few numbers leave it to luck, plain torch in the same precision; None: not wanted."""
    oracle = run(reference.mean_attention, query.double(), key.double(), gradient, mask, **options)
    plain = run(reference.mean_attention, query, key, gradient, mask, **options)
    for what, actual, truth, simple in zip(("map", "dQ", "dK"), found, oracle, plain, strict=True):
        if actual is not None:
            peer = simple if truth.numel() >= 1000 else None
            assert_accurate(actual, truth, peer, dtype=query.dtype, slack=slack, what=what)
