"""The factorized projection on a real NVIDIA GPU: precisions, large maps, streams, devices, graphs, memory."""

import pytest
import torch
from accuracy import relative_rms
from projection_problems import differentiated, make, some_mask

from comet_kernels.ops.factorized_projection import factorized_projection, projected_mse, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.version.hip is not None, reason="csrc's CUDA is for NVIDIA GPUs"),
]

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}
# batch, size, terms, S_max
SHAPES = [
    (1, 1, 1, 1),
    (9, 17, 3, 20),
    (5, 127, 5, 128),
    (64, 128, 4, 128),
    (7, 128, 32, 130),
    (5, 129, 3, 132),
    (3, 200, 1, 200),
    (4, 512, 4, 512),
    (2, 1024, 2, 1025),
]


@pytest.fixture(params=LIMITS)
def precision(request, monkeypatch):
    setting = "tf32" if request.param == "tf32" else "ieee"
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", setting)
    with torch.autocast("cuda", torch.bfloat16, enabled=request.param == "bfloat16"):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_each_precision_against_float64(shape, precision):
    tensors, mask = make(*shape, device="cuda"), some_mask(*shape[:2], "cuda")
    oracle = differentiated(reference.projected_mse, tensors, torch.float64, mask)
    found = differentiated(projected_mse, tensors, torch.float32, mask)
    again = differentiated(projected_mse, tensors, torch.float32, mask)
    for what, ours, same, truth in zip(
        ("loss", "dA", "dL", "dR"), found, again, oracle, strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, same)
        error = relative_rms(ours, truth)
        assert error <= LIMITS[precision], f"{what}: {error}"
        if precision != "float32" and shape[1] > 1 and what != "loss":
            assert error > 1e-4, f"{what}: {error}, so nothing was rounded to {precision}"


@pytest.mark.parametrize("size", [128, 257])
def test_projection_and_its_gradients(size, precision):
    student, _, left, right = make(3, size, 2, size, device="cuda")
    weight = torch.randn_like(student)

    def run(function, dtype):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (student, left, right)]
        output = function(*inputs)
        output.backward(weight.to(dtype))
        return output.detach(), *(x.grad for x in inputs)

    oracle = run(reference.factorized_projection, torch.float64)
    for ours, truth in zip(run(factorized_projection, torch.float32), oracle, strict=True):
        assert relative_rms(ours, truth) <= LIMITS[precision]


def test_backward_follows_the_autocast_of_forward():
    student, _, left, right = make(3, 128, 2, 128, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output = factorized_projection(student, left, right)
        expected = torch.autograd.grad(output.square().sum(), left, retain_graph=True)
    found = torch.autograd.grad(output.square().sum(), left)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("size", [128, 200])
def test_work_goes_to_the_current_stream(size):
    tensors = [x.detach() for x in make(8, size, 4, size, device="cuda")]
    expected = projected_mse(*tensors)
    late = [torch.zeros_like(x) for x in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for room, tensor in zip(late, tensors, strict=True):
            room.copy_(tensor)
        found = projected_mse(*late)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [128, 200])
def test_a_graph_holds_the_whole_call(size):
    student, teacher, left, right = (x.detach() for x in make(4, size, 2, size, device="cuda"))
    left.requires_grad_()
    mask = some_mask(4, size, "cuda")
    projected_mse(student, teacher, left, right, mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = projected_mse(student, teacher, left, right, mask)
    student.copy_(student.roll(1, 0))
    graph.replay()
    assert torch.equal(loss, projected_mse(student, teacher, left, right, mask))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device_than_the_current_one():
    tensors = make(4, 128, 2, 128)
    here, there = ([x.detach().to(f"cuda:{i}") for x in tensors] for i in (0, 1))
    with torch.cuda.device(0):
        found = differentiated(projected_mse, there, torch.float32)
        assert torch.cuda.current_device() == 0
        expected = differentiated(projected_mse, here, torch.float32)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("batch", "size", "terms"), [(64, 128, 4), (8, 512, 8), (4, 1024, 8)])
def test_memory_stays_below_a_map_per_term_and_sample(batch, size, terms):
    tensors = make(batch, size, terms, size, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = projected_mse(*tensors)
    kept = 4 * (batch + 2 * terms) * size**2  # the gradients
    peak = torch.cuda.max_memory_allocated() - before - kept
    assert peak < 4 * terms * batch * size**2
    loss.backward()
