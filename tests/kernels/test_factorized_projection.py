"""The factorized projection on the CPU (and, marked gpu, on CUDA) against the reference in float64."""

import subprocess
import sys

import pytest
import torch
from accounting import Allocations
from accuracy import assert_accurate, relative_rms
from projection_problems import DEVICES, differentiated, make, some_mask
from torch.utils._python_dispatch import TorchDispatchMode

from comet_kernels.ops.factorized_projection import (
    factorized_projection,
    op,
    pieces,
    projected_mse,
    reference,
)

# batch, size, terms, S_max
SHAPES = [
    (1, 1, 1, 1),
    (2, 17, 3, 17),
    (3, 17, 32, 20),
    (9, 5, 2, 9),
    (5, 127, 4, 128),
    (2, 129, 5, 130),
    (1, 250, 2, 250),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_projected_mse_against_float64(shape, masked, device):
    tensors = make(*shape, device=device)
    mask = some_mask(*shape[:2], device) if masked else None
    oracle = differentiated(reference.projected_mse, tensors, torch.float64, mask)
    plain = differentiated(reference.projected_mse, tensors, torch.float32, mask)
    fused = differentiated(projected_mse, tensors, torch.float32, mask)
    for what, ours, truth, torchs in zip(
        ("loss", "dA", "dL", "dR"), fused, oracle, plain, strict=True
    ):
        assert ours.dtype == torch.float32
        assert_accurate(ours, truth, torchs, what=what)
        assert relative_rms(-ours, truth) > 1
        assert relative_rms(torch.zeros_like(ours), truth) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_factorized_projection_against_float64(shape, device):
    student, _, left, right = make(*shape, device=device)
    weight = torch.randn(student.shape, generator=torch.Generator().manual_seed(5)).to(device)

    def run(function, dtype):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (student, left, right)]
        output = function(*inputs)
        (output * weight).sum().backward()
        return output.detach(), *(x.grad for x in inputs)

    for what, ours, truth, torchs in zip(
        ("P(A)", "dA", "dL", "dR"),
        run(factorized_projection, torch.float32),
        run(reference.factorized_projection, torch.float64),
        run(reference.factorized_projection, torch.float32),
        strict=True,
    ):
        assert_accurate(ours, truth, torchs, what=what)


@pytest.mark.parametrize("shape", [(3, 17, 3, 20), (2, 65, 2, 65)])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_torch_in_pieces_agrees(shape, masked, device, monkeypatch):
    """What other devices run, one sample at a time."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    tensors = [x.detach() for x in make(*shape, device=device)]
    student, _teacher, left, right = tensors
    mask = some_mask(*shape[:2], device) if masked else None
    oracle = differentiated(reference.projected_mse, tensors, torch.float64, mask, weight=1)
    with Allocations() as seen:
        loss, gradients = pieces.mse(*tensors, mask, (True, True, True))
    assert seen.largest_bytes <= 4 * max(student.numel(), left.numel())
    for ours, truth in zip((loss, *gradients), oracle, strict=True):
        assert_accurate(ours, truth)
    projected = reference.factorized_projection(*(x.double() for x in (student, left, right)))
    assert_accurate(pieces.forward(student, left, right), projected)
    for needs in [(True, False, False), (False, True, False), (False, False, True)]:
        found = pieces.backward(tensors[1], student, left, right, needs)
        fused = op._backward(tensors[1], student, left, right, *needs, False)
        for ours, theirs, needed in zip(found, fused, needs, strict=True):
            assert (ours is not None) == needed == (theirs.numel() > 0)
            if needed:
                assert_accurate(ours, theirs)


def test_no_real_token_means_no_loss_and_no_gradient(device):
    tensors = make(3, 17, 2, 20, device=device)
    mask = torch.zeros(3, 17, dtype=torch.bool, device=device)
    for found in differentiated(projected_mse, tensors, torch.float32, mask):
        assert (found == 0).all()


def test_no_sample_at_all(device):
    tensors = make(0, 17, 2, 20, device=device)
    loss, dA, dL, dR = differentiated(projected_mse, tensors, torch.float32)
    assert loss == 0
    assert dA.shape == (0, 17, 17)
    assert not dL.any()
    assert not dR.any()


def test_factors_beyond_the_corner_get_no_gradient(device):
    tensors = make(3, 17, 2, 30, device=device)
    _, _, *factors = differentiated(projected_mse, tensors, torch.float32)
    for gradient in factors:
        assert gradient.count_nonzero() == gradient[:, :17, :17].count_nonzero()
        assert (gradient[:, :17, :17] != 0).all()


def test_strides_do_not_matter(device):
    dense = [x.detach() for x in make(3, 17, 2, 20, device=device)]
    turned = [x.mT.contiguous().mT for x in dense]
    assert not any(x.is_contiguous() for x in turned)
    mask = some_mask(3, 17, device)
    expected = differentiated(projected_mse, dense, torch.float32, mask)
    inputs = [x.requires_grad_(i != 1) for i, x in enumerate(turned)]
    loss = projected_mse(*inputs, mask.T.contiguous().T)
    (-1.7 * loss).backward()
    found = loss, turned[0].grad, turned[2].grad, turned[3].grad
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    with torch.no_grad():
        assert torch.equal(
            factorized_projection(turned[0], *turned[2:]),
            factorized_projection(dense[0], *dense[2:]),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_in_half_precision(dtype, device):
    student, teacher, left, right = make(3, 33, 2, 33, device=device, dtype=dtype)
    loss = projected_mse(student, teacher, left, right)
    assert loss.dtype == torch.float32
    loss.backward()
    wide = [student.float(), teacher.float(), left, right]
    expected = differentiated(reference.projected_mse, wide, torch.float64, weight=1)
    assert_accurate(loss, expected[0])
    assert student.grad.dtype == dtype
    for gradient, truth in zip((student.grad, left.grad, right.grad), expected[1:], strict=True):
        assert_accurate(gradient, truth, dtype=gradient.dtype)


@pytest.mark.parametrize(
    "wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 0)]
)
def test_only_wanted_gradients_are_computed(wanted, device, monkeypatch):
    student, teacher, left, right = make(3, 17, 2, 20, device=device)
    full = differentiated(projected_mse, (student, teacher, left, right), torch.float32, weight=1)
    for tensor, flag in zip((student, left, right), wanted, strict=True):
        tensor.requires_grad_(bool(flag))
    with Outputs() as outputs:
        loss = projected_mse(student, teacher, left, right)
        with torch.no_grad():
            factorized_projection(student, left, right)  # one more of the student's size
    assert len(outputs.sizes) == sum(wanted) + 1
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for tensor, flag, expected in zip((student, left, right), wanted, full[1:], strict=True):
        assert (tensor.grad is not None) == bool(flag)
        if flag:
            assert torch.equal(tensor.grad, expected)


class Outputs(TorchDispatchMode):
    """How many numbers our ops return in each tensor, scalars and empty ones left out."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "comet":
            tensors = result if isinstance(result, tuple) else (result,)
            self.sizes += [tensor.numel() for tensor in tensors if tensor.numel() > 1]
        return result


def test_the_same_bits_twice_and_for_any_number_of_threads(device):
    tensors = make(9, 65, 3, 65, device=device)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(differentiated(projected_mse, tensors, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("where", ["student_map", "teacher_map", "left", "right"])
def test_nan_in_gives_nan_out(where, device):
    tensors = dict(
        zip(
            ("student_map", "teacher_map", "left", "right"),
            make(2, 17, 2, 20, device=device),
            strict=True,
        )
    )
    with torch.no_grad():
        tensors[where][1, 3, 4] = torch.nan
    assert projected_mse(**tensors).isnan()


def test_padding_of_the_teacher_does_not_matter(device):
    student, teacher, left, right = make(2, 17, 2, 17, device=device)
    mask = torch.ones(2, 17, dtype=torch.bool, device=device)
    mask[:, 11:] = False
    expected = projected_mse(student, teacher, left, right, mask)
    teacher[:, 11:], teacher[:, :, 11:] = torch.nan, torch.inf
    found = projected_mse(student, teacher, left, right, mask)
    assert torch.equal(expected, found)
    found.backward()
    assert left.grad.isfinite().all()


def test_cpu_memory_stays_below_a_map_per_term_and_sample():
    """Peak memory of a process that does nothing else, beyond what it held before."""
    program = """
import resource, torch
from comet_kernels.ops.factorized_projection import projected_mse
B, S, K = 64, 160, 8
student, teacher = torch.rand(B, S, S, requires_grad=True), torch.rand(B, S, S)
left, right = torch.rand(K, S, S, requires_grad=True), torch.rand(K, S, S, requires_grad=True)
projected_mse(student[:1, :9, :9], teacher[:1, :9, :9], left, right).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
projected_mse(student, teacher, left, right).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * K * B * S * S))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(ran.stdout) < 0.9
