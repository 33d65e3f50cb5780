"""The extension called directly: softened KL in C++ against float64, and what happens without the extension."""

import subprocess
import sys

import pytest
import torch
from accuracy import assert_accurate

from comet_kernels import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def rows(n, v, dtype=torch.float32, scale=3.0, seed=0, padding=0):
    """Logits whose rows lie `padding` elements apart."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(n, v + padding, generator=generator) * scale
    return wide.to(dtype)[:, :v]


def forward(student, teacher, temperature, mask=None, threads=2):
    n, v = student.shape
    out = torch.full((n,), float("nan")), torch.full((4, n), float("nan"))
    native.library().softened_kl_forward(
        *(student.data_ptr(), teacher.data_ptr(), temperature.data_ptr()),
        *(0 if mask is None else mask.data_ptr(), n, v, student.stride(0), teacher.stride(0)),
        *(native.DTYPE_CODES[student.dtype], native.DTYPE_CODES[teacher.dtype]),
        *(tensor.data_ptr() for tensor in out),
        threads,
    )
    return out


def backward(student, teacher, temperature, scale, statistics, mask=None, threads=2, gradient=None):
    n, v = student.shape
    if gradient is None:
        gradient = torch.full((n, v), float("nan"), dtype=student.dtype)
    native.library().softened_kl_backward(
        *(student.data_ptr(), teacher.data_ptr(), temperature.data_ptr()),
        *(0 if mask is None else mask.data_ptr(), scale.data_ptr()),
        *(statistics.data_ptr(), n, v, student.stride(0), teacher.stride(0)),
        *(native.DTYPE_CODES[student.dtype], native.DTYPE_CODES[teacher.dtype]),
        *(gradient.data_ptr(), gradient.stride(0), native.DTYPE_CODES[gradient.dtype]),
        threads,
    )
    return gradient


def plain(student, teacher, temperature, scale, dtype):
    """KL of each row and Σ scale · KL's gradient / T, as the extension defines it, in plain torch."""
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    T = temperature.to(dtype)[:, None]
    log_t, log_s = (teacher / T).log_softmax(-1), (student / T).log_softmax(-1)
    mass = log_t.exp()
    kl = torch.where(mass > 0, mass * (log_t - log_s), 0).sum(-1) * T[:, 0] ** 2
    (kl * scale.to(dtype)).sum().backward()
    return kl.detach(), student.grad


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "v"), [(3, 2), (5, 17), (4, 1009), (2, 16384), (3, 33333)])
def test_softened_kl_against_float64(n, v, dtype):
    student, teacher = rows(n, v, dtype, padding=3), rows(n, v, dtype, seed=1, padding=6)
    temperature = torch.linspace(0.7, 3.0, n)
    scale = torch.linspace(-1.0, 2.0, n)
    oracle_kl, oracle_gradient = plain(student, teacher, temperature, scale, torch.float64)
    plain_kl, plain_gradient = plain(student, teacher, temperature, scale, torch.float32)
    kl, statistics = forward(student, teacher, temperature)
    assert_accurate(kl, oracle_kl, plain_kl, what="kl")
    T = temperature.double()
    for largest, logits in zip(statistics[::2], (student, teacher), strict=True):
        assert torch.equal(largest, logits.amax(-1).float())
    of_student, of_teacher = (
        (logits.double() / T[:, None]).logsumexp(-1) - logits.double().amax(-1) / T
        for logits in (student, teacher)
    )
    assert_accurate(statistics[3], of_teacher, what="log-sum")
    assert_accurate(statistics[1], of_student - of_teacher, what="difference of log-sums")
    gradient = backward(student, teacher, temperature, scale, statistics)
    assert_accurate(
        gradient, oracle_gradient, plain_gradient.to(dtype), dtype=dtype, what="gradient"
    )


@pytest.mark.parametrize("threads", [0, 1, 7])
def test_any_number_of_threads_does_all_the_work(threads):
    student, teacher = rows(5, 33333), rows(5, 33333, seed=1)
    temperature = torch.full((5,), 2.0)
    expected, found = (forward(student, teacher, temperature, threads=n) for n in (2, threads))
    assert all(map(torch.equal, found, expected))


def test_softened_kl_at_the_vocabulary_of_xlm_r():
    student, teacher = rows(2, 250_002), rows(2, 250_002, seed=1)
    temperature, scale = torch.full((2,), 2.0), torch.ones(2)
    oracle_kl, oracle_gradient = plain(student, teacher, temperature, scale, torch.float64)
    plain_kl, plain_gradient = plain(student, teacher, temperature, scale, torch.float32)
    kl, statistics = forward(student, teacher, temperature)
    gradient = backward(student, teacher, temperature, scale, statistics)
    assert_accurate(kl, oracle_kl, plain_kl, slack=1.0)
    assert_accurate(gradient, oracle_gradient, plain_gradient, slack=1.0)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softened_kl_keeps_its_accuracy_under_extreme_logits(shift):
    student, teacher = rows(4, 1009) + shift, rows(4, 1009, seed=1) - shift
    temperature, scale = torch.full((4,), 1.5), torch.ones(4)
    oracle_kl, oracle_gradient = plain(student, teacher, temperature, scale, torch.float64)
    kl, statistics = forward(student, teacher, temperature)
    assert_accurate(kl, oracle_kl)
    gradient = backward(student, teacher, temperature, scale, statistics)
    assert_accurate(gradient, oracle_gradient)


def test_softened_kl_of_certain_outcomes():
    student, teacher = torch.full((3, 40), -1e4), torch.full((3, 40), -1e4)
    student[0, 3] = teacher[0, 3] = 1e4  # agree
    student[1, 3] = teacher[1, 4] = 1e4  # disagree
    temperature = torch.ones(3)
    kl, statistics = forward(student, teacher, temperature)
    assert kl.tolist() == [0.0, 20000.0, 0.0]
    gradient = backward(student, teacher, temperature, torch.ones(3), statistics)
    assert gradient[0].abs().max() == 0
    assert gradient[1, 3] == 1
    assert gradient[1, 4] == -1


def test_softened_kl_with_infinite_logits():
    student, teacher = rows(4, 5000), rows(4, 5000, seed=1)
    student[0, 7:4500] = teacher[
        0, 7:4500
    ] = -torch.inf  # both leave these out, whole blocks of them
    teacher[1, 9] = -torch.inf  # no mass there: nothing to pay
    student[2, 9] = -torch.inf  # mass that the student cannot explain
    student[3, 9] = torch.nan
    temperature = torch.ones(4)
    kl, statistics = forward(student, teacher, temperature)
    oracle, slope = plain(student[:2], teacher[:2], temperature[:2], torch.ones(2), torch.float64)
    assert_accurate(kl[:2], oracle)
    assert kl[2] == torch.inf
    assert kl[3].isnan()
    gradient = backward(student, teacher, temperature, torch.ones(4), statistics)
    assert gradient[0, 7:4500].abs().max() == 0
    assert_accurate(gradient[1], slope[1])
    assert gradient[2].isfinite().all()
    assert gradient[3].isnan().all()


def test_masked_rows_count_for_nothing_whatever_they_hold():
    student, teacher = rows(3, 100), rows(3, 100, seed=1)
    student[1], teacher[1, 5] = torch.nan, torch.inf
    mask = torch.tensor([True, False, True])
    kl, statistics = forward(student, teacher, torch.ones(3), mask)
    gradient = backward(student, teacher, torch.ones(3), torch.ones(3), statistics, mask)
    assert kl[1] == 0
    assert statistics[:, 1].tolist() == [0.0] * 4
    assert gradient[1].abs().max() == 0
    for row in (0, 2):
        alone = forward(student[row : row + 1], teacher[row : row + 1], torch.ones(1))
        assert torch.equal(alone[0], kl[row : row + 1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_may_take_the_students_place(dtype):
    student, teacher = rows(3, 5003, dtype), rows(3, 5003, dtype, seed=1)
    temperature, scale = torch.full((3,), 2.0), torch.ones(3)
    _, statistics = forward(student, teacher, temperature)
    apart = backward(student, teacher, temperature, scale, statistics)
    in_place = backward(student, teacher, temperature, scale, statistics, gradient=student)
    assert in_place is student
    assert torch.equal(apart, in_place)


def test_any_number_of_threads_gives_the_same_bits():
    student, teacher = rows(3, 50_001), rows(3, 50_001, seed=1)
    temperature, scale = torch.full((3,), 2.0), torch.ones(3)
    one, two, five = (forward(student, teacher, temperature, threads=t) for t in (1, 2, 5))
    assert all(torch.equal(a, b) for other in (two, five) for a, b in zip(one, other, strict=True))
    gradients = [
        backward(student, teacher, temperature, scale, one[1], threads=t) for t in (1, 2, 5)
    ]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_gradient_beyond_the_caches_is_written_in_full():
    """Large gradients take another way to memory, from rows that begin at any address."""
    student, teacher = rows(5, 250_002), rows(5, 250_002, seed=1)
    temperature, scale = torch.full((5,), 2.0), torch.ones(5)
    _, statistics = forward(student, teacher, temperature)
    room = torch.full((5, 250_005), float("nan"))
    gradient = backward(
        student, teacher, temperature, scale, statistics, gradient=room[:, 1:250_003]
    )
    rowwise = [
        backward(student[r : r + 1], teacher[r : r + 1], temperature[:1], scale[:1], each)
        for r in range(5)
        for each in [statistics[:, r].clone()]
    ]
    assert torch.equal(gradient, torch.cat(rowwise))
    assert room[:, 0].isnan().all()
    assert room[:, 250_003:].isnan().all()


def test_no_rows_and_a_bad_dtype():
    empty = torch.empty(0, 5)
    forward(empty, empty, torch.empty(0))
    with pytest.raises(ValueError, match="dtype"):
        native.library().softened_kl_forward(0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1)


@pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info(),
    reason="torch computes with threads of another kind",
)
@pytest.mark.parametrize("loads", ["parent", "child"])
def test_threads_are_those_of_torch_and_a_forked_child_starts_its_own(loads):
    """libgomp's would wait for ever for threads that stayed with the parent."""
    program = f"""
import os, torch
from comet_kernels import native, reference
torch.set_num_threads(2)
logits, temperature = torch.randn(2, 64, 5000), torch.full((64,), 2.0)
expected = 4 * reference.softened_kl(*logits, 2.0, return_kl=True)[1]  # torch's threads have begun
if {loads == "parent"}:
    native.library()
child = os.fork()
if child == 0:
    assert not native.library().has_team()
    found = torch.empty(5, 64)
    native.library().softened_kl_forward(
        logits[0].data_ptr(), logits[1].data_ptr(), temperature.data_ptr(), 0, 64, 5000,
        5000, 5000, 0, 0, found[0].data_ptr(), found[1].data_ptr(), 2)
    os._exit(0 if float((found[0] - expected).abs().max() / expected.max()) < 1e-5 else 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert native.library().has_team()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_without_the_extension_the_first_call_says_how_to_build_it():
    program = (
        "import sys; sys.modules['comet_kernels._native'] = None\n"
        "from comet_kernels import native\n"
        "assert native.has_cuda() is False\n"
        "try: native.library()\n"
        "except RuntimeError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install -e ." in ran.stdout


def test_an_extension_of_another_version_of_the_source_is_refused(monkeypatch):
    built = native.library()
    monkeypatch.setattr(built, "INTERFACE", native.INTERFACE - 1)
    native.library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"another version of the source.*pip install -e \."):
            native.library()
    finally:
        native.library.cache_clear()
