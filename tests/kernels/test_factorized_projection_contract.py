"""What the factorized projection promises beyond numbers: registration, compilation, precision, errors, warnings."""

import warnings

import pytest
import torch
from projection_problems import DEVICES, make, some_mask

from comet_kernels import native
from comet_kernels.ops.factorized_projection import (
    cuda,
    factorized_projection,
    op,
    projected_mse,
    reference,
)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def test_opcheck(device):
    student, teacher, left, right = make(3, 5, 2, 7, device=device)
    mask = some_mask(3, 5, device)
    check = torch.library.opcheck
    check(op._mse, (student, teacher, left, right, mask, True, True, True, False))
    check(op._mse, (student, teacher, left, right.detach(), None, True, True, False, False))
    check(op._forward, (student, left, right, False))
    constants = [x.detach() for x in (teacher, student, left, right)]
    check(op._backward, (*constants, True, False, True, False))


def test_compiled_is_equal_to_eager(device):
    student, teacher, left, right = make(3, 17, 2, 20, device=device)
    mask = some_mask(3, 17, device)

    def step(student, left, right):
        projected = factorized_projection(student, left, right)
        return 3 * projected_mse(student, teacher, left, right, mask) + projected.square().mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    losses, gradients = [], []
    for function in (step, compiled):
        inputs = [x.detach().clone().requires_grad_() for x in (student, left, right)]
        loss = function(*inputs)
        loss.backward()
        losses.append(loss)
        gradients.append([x.grad for x in inputs])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "functions",
    [
        (projected_mse, factorized_projection),
        (reference.projected_mse, reference.factorized_projection),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_the_cpu(functions, dtype):
    mse, project = functions
    student, teacher, left, right = make(3, 17, 2, 20)
    expected = mse(student, teacher, left, right), project(student, left, right)
    with torch.autocast("cpu", dtype=dtype):
        found = mse(student, teacher, left, right), project(student, left, right)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(tensor.dtype == torch.float32 for tensor in found)


def test_only_autocast_to_bfloat16_on_a_gpu_asks_for_bfloat16():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert not op._in_bfloat16(gpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert not op._in_bfloat16(cpu)
        assert not op._in_bfloat16(gpu)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns where there is no GPU, and leaves autocast off
        with torch.autocast("cuda", torch.float16):
            assert not op._in_bfloat16(gpu)
        with torch.autocast("cuda", torch.bfloat16):
            assert op._in_bfloat16(gpu) == torch.cuda.is_available()
            assert not op._in_bfloat16(cpu)


def test_second_derivatives_are_refused():
    student, teacher, left, right = make(2, 5, 2, 5)
    weight = torch.ones((), requires_grad=True)
    loss = weight * projected_mse(student, teacher, left, right)
    (gradient,) = torch.autograd.grad(loss, left, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


zeros = torch.zeros


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_map": zeros(2, 5)}, r"student_map: got 2 dimensions, expected 3"),
        ({"student_map": zeros(2, 5, 4)}, r"student_map: got shape \[2, 5, 4\], expected square"),
        ({"student_map": zeros(2, 0, 0)}, r"student_map: got shape \[2, 0, 0\], expected square"),
        ({"student_map": zeros(2, 9, 9)}, r"student_map: got S = 9, expected at most S_max = 7"),
        ({"student_map": zeros(2, 5, 5, dtype=torch.float64)}, r"student_map: got torch.float64"),
        ({"teacher_map": zeros(2, 5, 6)}, r"teacher_map: got shape \[2, 5, 6\], expected"),
        ({"teacher_map": zeros(2, 5, 5, dtype=torch.int64)}, r"teacher_map: got torch.int64"),
        ({"teacher_map": zeros(2, 5, 5, device="meta")}, r"teacher_map: got device meta"),
        ({"left": zeros(7, 7)}, r"left: got 2 dimensions, expected 3"),
        ({"left": zeros(3, 7, 6)}, r"left: got shape \[3, 7, 6\]"),
        ({"left": zeros(0, 7, 7)}, r"left: got shape \[0, 7, 7\]"),
        ({"left": zeros(3, 7, 7, dtype=torch.int32)}, r"left: got torch.int32"),
        ({"left": zeros(3, 7, 7, device="meta")}, r"left: got device meta"),
        ({"right": zeros(4, 7, 7)}, r"right: got shape \[4, 7, 7\], expected .* = \[3, 7, 7\]"),
        ({"right": zeros(3, 8, 8)}, r"right: got shape \[3, 8, 8\]"),
        ({"right": zeros(3, 7, 7, dtype=torch.bool)}, r"right: got torch.bool"),
        ({"mask": zeros(2, 5)}, r"mask: got torch.float32, expected torch.bool"),
        ({"mask": zeros(2, 6, dtype=torch.bool)}, r"mask: got shape \[2, 6\]"),
        ({"mask": zeros(2, 5, dtype=torch.bool, device="meta")}, r"mask: got device meta"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        "student_map": zeros(2, 5, 5),
        "teacher_map": zeros(2, 5, 5),
        "left": zeros(3, 7, 7),
        "right": zeros(3, 7, 7),
        "mask": None,
    }
    with pytest.raises(ValueError, match=message):
        projected_mse(**{**arguments, **changes})
    if "student_map" in changes:
        with pytest.raises(ValueError, match=message.replace("student_map", "map", 1)):
            factorized_projection(changes["student_map"], arguments["left"], arguments["right"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops, m, f: ops.factorized_projection(m.half(), f, f, False), "map: got torch.fl"),
        (lambda ops, m, f: ops.factorized_projection(m, f, f[:1], False), "right: got shape"),
        (
            lambda ops, m, f: ops.factorized_projection_backward(
                m[:1], m, f, f, True, True, True, False
            ),
            r"gradient: got shape \[1, 5, 5\]",
        ),
        (
            lambda ops, m, f: ops.projected_mse(m, m.double(), f, f, None, True, True, True, False),
            "teacher_map: got torch.float64",
        ),
        (
            lambda ops, m, f: ops.projected_mse(
                m, m, f, f.bfloat16(), None, True, True, True, False
            ),
            "right: got torch.bfloat16, expected torch.float32",
        ),
    ],
)
def test_ops_called_directly_check_too(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ops.comet, zeros(2, 5, 5), zeros(3, 7, 7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": 0}, "terms: got 0, expected at least 1"),
        ({"size": 8}, "size: got 8, expected 1 to max_size = 7"),
        ({"size": 0}, "size: got 0"),
        ({"max_size": -1}, "max_size: got -1"),
        ({"batch": -1}, "batch: got -1, expected 0 or more"),
        ({"left": 0}, "left: got 0, expected an address"),
        ({"map": 0}, "map: got 0, expected an address"),
        ({"output": 0}, "output: got 0, expected an address"),
        ({"precision": 3}, "precision: got 3, expected 0, 1 or 2"),
        ({"workspace": 8}, "workspace: got 8, expected a multiple of 16"),
    ],
)
def test_native_code_checks_too(changes, message):
    """Nothing is read or launched before."""
    arguments = {
        **{"map": 64, "left": 64, "right": 64, "terms": 3, "max_size": 7, "batch": 2, "size": 5},
        "output": 64,
    }
    on_cuda = {"workspace": 64, "precision": 0, "stream": 0}
    if not changes.keys() & on_cuda.keys():
        with pytest.raises(ValueError, match=message):
            native.library().factorized_projection_forward(**{**arguments, **changes}, threads=1)
    if native.has_cuda():
        with pytest.raises(ValueError, match=message):
            native.library().cuda_factorized_projection_forward(
                **{**arguments, **on_cuda, **changes}
            )


def no_extension():
    raise RuntimeError("comet_kernels' C++ extension does not load: build it with X")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(torch.version, "hip", "6.4")], "NVIDIA GPUs only, not for ROCm"),
        (
            [(torch.version, "hip", None), (native, "has_cuda", lambda: False)],
            "built without CUDA.*COMET_CUDA=1 pip install",
        ),
        (
            [(torch.version, "hip", None), (native, "library", no_extension)],
            "does not load: build it with X, and nvcc with COMET_CUDA=1",
        ),
    ],
)
def test_without_cuda_kernels_one_warning_says_why(changes, message, monkeypatch):
    for change in changes:
        monkeypatch.setattr(*change)
    if len(changes) > 1 and changes[1][1] == "has_cuda":
        monkeypatch.setattr(native, "library", lambda: None)
    cuda._usable.cache_clear()
    problem = [x.detach() for x in make(2, 5, 2, 7)]
    with pytest.warns(UserWarning, match=f"(?s)runs in plain torch.*{message}"):
        loss, _ = cuda.mse(*problem, None, (True, True, True), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cuda.mse(*problem, None, (True, True, True), False)[0], loss)
    cuda._usable.cache_clear()
    torch.testing.assert_close(loss, reference.projected_mse(*problem))


@pytest.mark.skipif(not native.has_cuda(), reason="built without CUDA")
@pytest.mark.parametrize(
    ("batch", "terms", "size"), [(8, 4, 128), (64, 4, 128), (256, 32, 128), (32, 8, 512)]
)
def test_cuda_workspace_stays_below_a_map_per_term_and_sample(batch, terms, size):
    needed = native.library().cuda_projection_workspace_bytes(terms, batch, size, True, True, True)
    assert needed < 4 * terms * batch * size * size
