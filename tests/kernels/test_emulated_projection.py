"""csrc's CUDA kernels on emulated threads, fragments and barriers against the reference in float64."""

import subprocess

import pytest
import torch
from accuracy import relative_rms
from emulated import COMPILER, CUDA_SOURCES, EMULATION, PRECISIONS, Emulation, compile_all
from projection_problems import differentiated, make, some_mask

from comet_kernels.ops.factorized_projection import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}
LITTLE, MUCH = 99 << 10, 227 << 10  # bytes of shared memory for a block
NAMES = ("loss", "dA", "dL", "dR")
# batch, size, terms, S_max: up to 128 in chains of products, beyond that product by product
SHAPES = [
    (1, 1, 1, 1),
    (9, 17, 3, 20),
    (1, 17, 32, 17),
    (5, 64, 1, 65),
    (4, 65, 5, 68),
    (2, 127, 3, 128),
    (1, 128, 1, 128),
    (3, 129, 1, 132),
    (1, 200, 3, 200),
]


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    target = tmp_path_factory.mktemp("emulated") / "libemulated.so"
    sources = [*CUDA_SOURCES, EMULATION / "library.cpp"]
    return Emulation(compile_all(sources, target, "-O2", "-shared"))


@pytest.fixture(autouse=True)
def _a_small_device(emulation):
    emulation.shared_memory_limit, emulation.last_thread_first = LITTLE, False


def problem(*shape, seed=0):
    student, teacher, left, right = (x.detach() for x in make(*shape, seed=seed))
    return student, teacher, left.contiguous(), right.contiguous()


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_against_float64(shape, precision, emulation):
    tensors, mask = problem(*shape), some_mask(*shape[:2])
    oracle = differentiated(reference.projected_mse, tensors, torch.float64, mask, weight=1)
    found = emulation.mse(*tensors, mask, precision)
    for what, ours, truth in zip(NAMES, found, oracle, strict=True):
        error = relative_rms(ours, truth)
        assert error <= LIMITS[precision], f"{what}: {error}"
        assert relative_rms(-ours, truth) > 1
        if precision != "float32" and shape[1] > 1 and what != "loss":
            assert error > 1e-4, f"{what}: {error}, so nothing was rounded to {precision}"
    if precision == "tf32" and shape[1] <= 128:
        emulation.shared_memory_limit = MUCH  # where more tiles stay in shared memory
        assert same(emulation.mse(*tensors, mask, precision), found)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(5, 33, 3, 40), (2, 128, 1, 128), (2, 130, 1, 130)])
def test_projection_against_float64(shape, precision, emulation):
    student, _, left, right = problem(*shape)
    weight = torch.randn(student.shape, generator=torch.Generator().manual_seed(5))
    inputs = [x.double().requires_grad_() for x in (student, left, right)]
    output = reference.factorized_projection(*inputs)
    output.backward(weight.double())
    assert (
        relative_rms(emulation.forward(student, left, right, precision), output)
        <= (LIMITS[precision])
    )
    found = emulation.backward(weight, student, left, right, precision)
    for ours, source in zip(found, inputs, strict=True):
        assert relative_rms(ours, source.grad) <= LIMITS[precision]


@pytest.mark.parametrize("size", [65, 129])
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)])
def test_only_wanted_gradients_are_written(needs, size, emulation):
    tensors, mask = problem(2, size, 1, size), some_mask(2, size)
    whole = emulation.mse(*tensors, mask, "bfloat16")
    loss, *found = emulation.mse(*tensors, mask, "bfloat16", needs)
    assert torch.equal(loss, whole[0])
    for ours, needed, expected in zip(found, needs, whole[1:], strict=True):
        assert ours is None if not needed else torch.equal(ours, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(5, 70, 2, 72), (2, 129, 1, 129)])
def test_the_order_of_threads_does_not_matter(shape, precision, emulation):
    """A barrier too few shows as another result when the last warp runs first."""
    tensors, mask = problem(*shape), some_mask(*shape[:2])
    emulation.shared_memory_limit = MUCH
    expected = emulation.mse(*tensors, mask, precision)
    emulation.last_thread_first = True
    assert same(emulation.mse(*tensors, mask, precision), expected)


@pytest.mark.parametrize("size", [17, 130])
def test_no_mask_is_a_mask_of_all(size, emulation):
    tensors = problem(2, size, 1, size)
    whole = torch.ones(2, size, dtype=torch.bool)
    found = emulation.mse(*tensors, None, "float32")
    assert same(found, emulation.mse(*tensors, whole, "float32"))
    oracle = differentiated(reference.projected_mse, tensors, torch.float64, weight=1)
    assert max(map(relative_rms, found, oracle)) <= LIMITS["float32"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", range(4))
def test_nan_in_gives_nan_out(where, precision, emulation):
    tensors = problem(2, 17, 2, 20)
    tensors[where][1, 3, 4] = torch.nan
    assert emulation.mse(*tensors, None, precision)[0].isnan()


@pytest.mark.parametrize("size", [17, 129])
def test_infinity_stays_infinity(size, emulation):
    """Beyond the map there are zeros, and 0 times infinity is not a number."""
    student, _, left, right = problem(1, size, 1, size)
    right, left[0, 2, 3] = right.abs(), torch.inf
    for precision in PRECISIONS:
        found = emulation.forward(student, left, right, precision)
        assert torch.equal(found.isinf(), torch.arange(size)[:, None].expand(size, size)[None] == 2)
        assert not found.isnan().any()


@pytest.mark.parametrize("size", [17, 129])
def test_padding_of_the_teacher_and_empty_problems(size, emulation):
    student, teacher, left, right = problem(2, size, 1, size)
    mask = some_mask(2, size)
    expected = emulation.mse(student, teacher, left, right, mask, "float32")
    teacher[1, 1:], teacher[1, :, 1:] = torch.nan, torch.inf
    assert same(emulation.mse(student, teacher, left, right, mask, "float32"), expected)
    for found in emulation.mse(student, teacher, left, right, mask & False, "float32"):
        assert not found.any()
    nothing = student[:0], teacher[:0], left, right
    for found in emulation.mse(*nothing, None, "float32"):
        assert not found.any()


def test_a_launch_that_fails_is_an_exception(emulation):
    emulation.shared_memory_limit = 32 << 10
    with pytest.raises(RuntimeError, match="shared memory: invalid value"):
        emulation.mse(*problem(1, 17, 1, 17), None, "bfloat16")


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Under AddressSanitizer and UBSan, every buffer with exactly the size it must have."""
    sources = [*CUDA_SOURCES, EMULATION / "sanitize.cpp"]
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    driver = compile_all(sources, tmp_path / "driver", *flags)
    ran = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all right" in ran.stdout
