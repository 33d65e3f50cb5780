import itertools

import pytest
import torch
from accounting import Allocations
from accuracy import assert_accurate, divergence, relative_rms

from comet_kernels.ops.softened_kl import (
    gradient_kernels,
    kernels,
    loads,
    reference,
    rows,
    softened_kl,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IMPLEMENTATIONS = {
    "triton": (kernels.forward, gradient_kernels.backward),
    "c++": (rows.forward, rows.backward),
    "torch": (rows.plain_forward, rows.plain_backward),
}
INFINITE = float("inf")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def home(implementation) -> str:
    """Where an implementation's tensors live: compiled kernels take a GPU's only, interpreted ones the CPU's."""
    return "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"


def evaluate(implementation, student, teacher, temperature, mask=None, in_place=False):
    """Mean loss and its gradient without the op around them; the gradient of each row's loss is 1 / rows."""
    forward, backward = IMPLEMENTATIONS[implementation]
    n = student.shape[0]
    if not isinstance(temperature, torch.Tensor):
        temperature = torch.full((n,), float(temperature), device=student.device)
    chosen = n if mask is None else int(mask.sum())
    scale = torch.full((n,), 1 / max(chosen, 1), device=student.device)
    student = student.clone() if in_place else student
    loss, statistics = forward(student, teacher, temperature, mask)
    gradient = student if in_place else torch.empty_like(student)
    backward(student, teacher, temperature, mask, scale, statistics, gradient)
    return loss.sum() / max(chosen, 1), gradient


def run(function, student, teacher, temperature, mask=None, incoming=1.0):
    student = student.detach().requires_grad_()
    loss = function(student, teacher, temperature, mask)
    (loss * incoming).backward()
    return loss.detach(), student.grad


def judge(found, student, teacher, temperature, mask=None, incoming=1.0, slack=2.0):
    arguments = (temperature, mask, incoming)
    oracle = run(reference.softened_kl, student.double(), teacher.double(), *arguments)
    plain = run(reference.softened_kl, student, teacher, *arguments)
    for what, actual, truth, simple in zip(("loss", "gradient"), found, oracle, plain, strict=True):
        dtype = torch.float32 if what == "loss" else student.dtype
        assert_accurate(actual, truth, simple, dtype=dtype, slack=slack, what=what)


@pytest.mark.parametrize(
    ("n", "v", "student_dtype", "teacher_dtype"),
    [
        (3, 1, torch.float32, torch.float32),
        (4, 1009, torch.float32, torch.float32),
        (3, 4096, torch.float32, torch.bfloat16),
        (9, 9001, torch.bfloat16, torch.bfloat16),
        (2, 2 * kernels.CHUNK + 1003, torch.float32, torch.float32),
        (3, 5003, torch.float16, torch.float32),
    ],
)
def test_kernels_agree_with_the_definition(implementation, n, v, student_dtype, teacher_dtype):
    device = home(implementation)
    student = (3 * torch.randn(n, v, device=device)).to(student_dtype)
    teacher = (3 * torch.randn(n, v, device=device)).to(teacher_dtype)
    temperature = 1 + 2 * torch.rand(n, device=device)
    mask = torch.arange(n, device=device) != 1
    for chosen in (None, mask):
        found = evaluate(implementation, student, teacher, temperature, chosen)
        assert found[1].dtype == student_dtype
        judge(found, student, teacher, temperature, chosen)
        in_place = evaluate(implementation, student, teacher, temperature, chosen, in_place=True)
        assert all(map(torch.equal, found, in_place))


def scattered(v, distance, device="cpu"):
    """A student at a distance from its teacher, and shifted, which changes nothing."""
    teacher = 3 * torch.randn(4, v, device=device)
    return teacher + distance * torch.randn_like(teacher) + 4, teacher


@pytest.mark.parametrize("temperature", [1.0, 2.0, 100.0])
@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_a_student_close_to_its_teacher(implementation, distance, temperature):
    """Where nearly all of the loss cancels: relative to the loss, and every element of the gradient."""
    device = home(implementation)
    for v in (5, 2003) if implementation == "triton" else (5, 2003, 250_002):
        student, teacher = scattered(v, distance, device)
        forward, backward = IMPLEMENTATIONS[implementation]
        degrees, gradient = torch.full((4,), temperature, device=device), torch.empty_like(student)
        loss, statistics = forward(student, teacher, degrees, None)
        backward(student, teacher, degrees, None, torch.ones_like(degrees), statistics, gradient)
        kl, slope = divergence(student, teacher, temperature)
        spread = 1e-3 * kl if v > 5 else 5e-7  # few logits of much or no mass are a longer series
        assert ((loss.double() / temperature**2 - kl).abs() <= spread).all()
        # logits near 10 are rounded to 5e-7 when they are measured from the largest
        assert relative_rms(gradient, slope) <= 1e-5 + 2e-6 / distance


def test_a_student_that_is_its_teacher(implementation):
    teacher = scattered(2003, 0, home(implementation))[1]
    for temperature in (1.0, 100.0):
        for student in (teacher, teacher + 4):
            loss, gradient = evaluate(implementation, student, teacher, temperature)
            assert 0 <= loss < 1e-10
            assert gradient.abs().max() < 1e-6
            if student is teacher:
                assert loss == 0
                assert not gradient.any()


@pytest.mark.parametrize("distance", [0, 1e-4, 1e-3, 1e-2])
def test_no_divergence_is_below_0(distance):
    student, teacher = scattered(2003, distance)
    for function in (softened_kl, reference.softened_kl):
        for temperature in (1.0, 2.0, 100.0):
            loss, kl = function(student, teacher, temperature, return_kl=True)
            assert loss >= 0
            assert (kl >= 0).all()
            truth = divergence(student, teacher, temperature)[0]
            assert (kl.double() - truth).abs().max() <= 1e-6  # what two logarithms near 8 leave
            if function is softened_kl:
                assert ((kl.double() - truth).abs() <= 1e-3 * truth + 1e-14).all()


def test_the_definition_has_the_gradient_of_a_divergence_that_is_rounded_to_0():
    student, teacher = scattered(2003, 1e-3)
    student.requires_grad_()
    reference.softened_kl(student, teacher, 2.0).backward()
    slope = divergence(student.detach(), teacher, 2.0)[1]
    assert relative_rms(student.grad * 4, slope) <= 1e-2


@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_logits(implementation, size):
    device = home(implementation)
    student, teacher = (size * (2 * torch.rand(3, 1009, device=device) - 1) for _ in range(2))
    # Two columns share the largest value: a log-sum-exp in float32 cannot tell log 2 from 1e4 + log 2 exactly.
    for logits in (student, teacher):
        logits[:, [5, 700]] = size
    judge(evaluate(implementation, student, teacher, 1.5), student, teacher, 1.5)


def test_minus_infinity(implementation):
    device = home(implementation)
    v = kernels.CHUNK + 4500
    student, teacher = torch.randn(5, v, device=device), torch.randn(5, v, device=device)
    student[0, :-300] = teacher[0, :-300] = -INFINITE  # a whole first chunk
    student[1, 4100:] = teacher[1, 4100:] = -INFINITE
    teacher[2, ::2] = -INFINITE  # 0 log 0 = 0
    student[3, ::3] = teacher[3, ::3] = -INFINITE
    found = evaluate(implementation, student, teacher, 2.0)
    assert found[0].isfinite()
    assert found[1].isfinite().all()
    judge(found, student, teacher, 2.0)
    student[4, 7] = -INFINITE  # mass where the student has none
    loss, gradient = evaluate(implementation, student, teacher, 2.0)
    assert loss == INFINITE
    assert gradient.isfinite().all()


def test_nan_in_gives_nan_out_but_not_from_rows_left_out(implementation):
    device = home(implementation)
    student, teacher = torch.randn(4, 33, device=device), torch.randn(4, 33, device=device)
    mask = torch.tensor([True, False, True, False], device=device)
    wanted = evaluate(implementation, student, teacher, 2.0, mask)
    temperature = torch.tensor([2.0, float("nan"), 2.0, 0.0], device=device)
    for bad in (float("nan"), INFINITE, -INFINITE):
        dirty = [logits.masked_fill(~mask[:, None], bad) for logits in (student, teacher)]
        found = evaluate(implementation, *dirty, temperature, mask)
        assert all(map(torch.equal, found, wanted))
    for side, bad in itertools.product((0, 1), (float("nan"), INFINITE)):
        dirty = [student.clone(), teacher.clone()]
        dirty[side][2, 5] = bad
        assert evaluate(implementation, *dirty, 2.0, mask)[0].isnan()


def test_rows_at_any_distance(implementation):
    device = home(implementation)
    wide = torch.randn(3, 40, device=device)
    student, teacher = wide[:, 3:20], wide[:1, 20:37].expand(3, 17)
    found = evaluate(implementation, student, teacher, 2.0)
    if (
        implementation == "triton"
    ):  # sums in another order where rows lie otherwise between 16-byte boundaries
        judge(found, student, teacher, 2.0)
    else:
        wanted = evaluate(implementation, student.contiguous(), teacher.contiguous(), 2.0)
        assert all(map(torch.equal, found, wanted))


def test_wide_loads_only_where_rows_lie_alike():
    wide = torch.zeros(3, 1001, dtype=torch.bfloat16)
    other = torch.zeros(3, 1001)
    even = torch.zeros(3, 1008)
    for sides, aligned, shifted, vector in (
        ((wide, wide), True, True, 8),
        ((even, even), True, False, 4),
        ((wide[:, 3:20], wide[:, 11:28]), True, True, 8),
        ((wide[:, 3:20], wide[:, 4:21]), False, False, 8),
        ((wide, wide[:, :18].contiguous()), False, False, 8),
        ((other, other[1:], other), False, False, 4),  # a row later: one number further
        ((wide, other), True, True, 8),
        ((wide, wide, other[:, 1:]), False, False, 8),
    ):
        found = loads.wide_loads(*sides)
        assert found == {"ALIGNED": aligned, "SHIFTED": shifted, "VECTOR": vector}
        biased = loads.with_biases(found, (wide[0], None))
        assert biased["ALIGNED"] == (aligned and not shifted)
        assert not biased["SHIFTED"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_op_agrees_with_the_definition(device, dtype):
    student, teacher = ((2 * torch.randn(7, 1009, device=device)).to(dtype) for _ in range(2))
    temperature = 1 + torch.rand(7, device=device)
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1], device=device).bool()
    for degrees, chosen, incoming in (
        (2.0, None, 1.0),
        (3, mask, 100.0),
        (temperature, None, 64.0),
        (temperature.double(), mask, 1.0),
    ):
        found = run(softened_kl, student, teacher, degrees, chosen, incoming)
        assert found[0].dtype == torch.float32
        assert found[0].dim() == 0
        assert found[1].dtype == dtype
        judge(found, student, teacher, degrees, chosen, incoming)


@pytest.mark.parametrize("device", DEVICES)
def test_the_vocabulary_of_xlm_r(device):
    student, teacher = (3 * torch.randn(3, 250002, device=device) for _ in range(2))
    judge(run(softened_kl, student, teacher, 2.0), student, teacher, 2.0)
    turned = student.t().contiguous().t()
    for one, other in zip(
        run(softened_kl, student, teacher, 2.0),
        run(softened_kl, turned, teacher, 2.0),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_kl_of_every_row_on_request(device):
    student, teacher = (2 * torch.randn(6, 1009, device=device) for _ in range(2))
    temperature = 1 + torch.rand(6, device=device)
    temperature[1] = float("nan")
    mask = torch.arange(6, device=device) != 1
    for degrees, chosen in ((3.0, None), (temperature, mask)):
        student.requires_grad_()
        loss, kl = softened_kl(student, teacher, degrees, chosen, return_kl=True)
        oracle, kl_oracle = reference.softened_kl(
            student.double(), teacher.double(), degrees, chosen, return_kl=True
        )
        assert not kl.requires_grad
        assert_accurate(kl, kl_oracle)
        assert_accurate(loss, oracle)
        assert torch.equal(loss, softened_kl(student, teacher, degrees, chosen))
        squares = 9.0 if chosen is None else temperature[mask] ** 2
        terms = kl if chosen is None else kl[mask]
        torch.testing.assert_close(loss, (terms * squares).mean())


@pytest.mark.gpu
def test_more_numbers_than_31_bits_count():
    n, v = 8700, 250002
    student = torch.zeros(n, v, device="cuda", dtype=torch.bfloat16).requires_grad_()
    teacher = torch.zeros(n, v, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        student[-1] = torch.randn(v)
        teacher[-1] = torch.randn(v)
    mask = torch.zeros(n, device="cuda", dtype=torch.bool)
    mask[-1] = True
    loss = softened_kl(student, teacher, 2.0, mask)
    loss.backward()
    found = loss.detach(), student.grad[-1:]
    judge(found, student.detach()[-1:], teacher[-1:], 2.0)
    assert not student.grad[:-1].any()


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_chosen(device):
    student, teacher = torch.randn(4, 9, device=device), torch.randn(4, 9, device=device)
    loss, gradient = run(softened_kl, student, teacher, 2.0, student[:, 0].isnan())
    assert loss == 0
    assert gradient.eq(0).all()
    loss, gradient = run(softened_kl, student[:0], teacher[:0], 2.0)
    assert loss == 0
    assert gradient.shape == (0, 9)


@pytest.mark.parametrize("device", DEVICES)
def test_teacher_and_temperature_are_constants(device):
    teacher = torch.randn(4, 9, device=device, requires_grad=True)
    temperature = torch.full((4,), 2.0, device=device, requires_grad=True)
    student = torch.randn(4, 9, device=device, requires_grad=True)
    softened_kl(student, teacher, temperature).backward()
    assert teacher.grad is None
    assert temperature.grad is None
    assert not softened_kl(student.detach(), teacher, temperature).requires_grad
    with torch.no_grad():
        assert not softened_kl(student, teacher, 2.0).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_twice(device):
    student, teacher = (torch.randn(5, 20011, device=device) for _ in range(2))
    first, second = (run(softened_kl, student, teacher, 2.0) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    student = torch.randn(4, 9, device=device, requires_grad=True)
    teacher, temperature = torch.randn(4, 9, device=device), torch.full((4,), 2.0, device=device)
    mask = torch.tensor([True, False, True, True], device=device)
    for chosen in (None, mask):
        arguments = (student, teacher, temperature, chosen)
        torch.library.opcheck(torch.ops.comet.softened_kl.default, arguments)
        _, statistics = torch.ops.comet.softened_kl(*arguments)
        torch.library.opcheck(
            torch.ops.comet.softened_kl_backward.default,
            (student.detach(), *arguments[1:], torch.ones_like(temperature), statistics.detach()),
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(device, dynamic, fresh_compiler):
    compiled = torch.compile(softened_kl, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (5, 8):
        student, teacher = torch.randn(n, 11, device=device), torch.randn(n, 11, device=device)
        mask = torch.arange(n, device=device) != 2
        for temperature in (2.0, 1 + torch.rand(n, device=device)):
            arguments = (student, teacher, temperature, mask)
            assert all(map(torch.equal, run(softened_kl, *arguments), run(compiled, *arguments)))
            pairs = (f(*arguments, return_kl=True) for f in (softened_kl, compiled))
            assert all(map(torch.equal, *pairs))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    student, teacher = torch.randn(4, 9, device=device), torch.randn(4, 9, device=device)
    expected = run(softened_kl, student, teacher, 2.0)
    with torch.autocast(device, torch.bfloat16):
        assert all(map(torch.equal, expected, run(softened_kl, student, teacher, 2.0)))


def test_only_the_gradient_has_the_size_of_the_logits(implementation):
    n, v = 64, 30011
    device = home(implementation)
    student, teacher = torch.randn(n, v, device=device), torch.randn(n, v, device=device)
    if implementation == "triton":
        student, teacher = student[:2], teacher[:2]
    with Allocations() as seen:
        evaluate(implementation, student, teacher, 2.0)
    room = rows.PIECE_BYTES if implementation == "torch" else 0
    assert seen.peak_bytes <= student.nbytes + room + 64 * n


def test_plain_torch_works_in_pieces(monkeypatch):
    student, teacher = torch.randn(9, 50), torch.randn(9, 50)
    mask = torch.arange(9) % 3 != 1
    whole = evaluate("torch", student, teacher, 2.0, mask)
    monkeypatch.setattr(rows, "PIECE_BYTES", 2 * 5 * 4 * 50)
    with Allocations() as seen:
        pieces = evaluate("torch", student, teacher, 2.0, mask)
    assert all(map(torch.equal, whole, pieces))
    assert seen.peak_bytes <= student.nbytes + rows.PIECE_BYTES + 64 * 9


LOGITS = torch.zeros(4, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS[0], LOGITS, 2.0), r"student_logits: got 1 dimensions, expected \[N, V\]"),
        ((LOGITS[:, :0], LOGITS[:, :0], 2.0), "student_logits: got V = 0"),
        ((LOGITS.double(), LOGITS, 2.0), "student_logits: got torch.float64, expected float32"),
        ((LOGITS, LOGITS.int(), 2.0), "teacher_logits: got torch.int32, expected float32"),
        ((LOGITS, LOGITS[:, 1:], 2.0), r"teacher_logits: got shape \[4, 8\], expected .*\[4, 9\]"),
        ((LOGITS, LOGITS.to("meta"), 2.0), "teacher_logits: got device meta"),
        ((LOGITS, LOGITS, 0.0), "temperature: got 0.0, expected a finite number above 0"),
        ((LOGITS, LOGITS, float("nan")), "temperature: got nan"),
        ((LOGITS, LOGITS, "hot"), "temperature: got 'hot'"),
        ((LOGITS, LOGITS, torch.ones(3)), r"temperature: got shape \[3\], expected \[N\] = \[4\]"),
        ((LOGITS, LOGITS, torch.ones(4).int()), "temperature: got torch.int32"),
        ((LOGITS, LOGITS, torch.tensor([1.0, 2, -1, 2])), "temperature: got -1.0, expected finite"),
        ((LOGITS, LOGITS, torch.tensor([1.0, 2, INFINITE, 2])), "temperature: got inf"),
        ((LOGITS, LOGITS, 2.0, torch.ones(4)), "mask: got torch.float32, expected torch.bool"),
        ((LOGITS, LOGITS, 2.0, torch.ones(5).bool()), r"mask: got shape \[5\], expected \[N\]"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        softened_kl(*arguments)


def test_differentiable_once():
    student = torch.randn(4, 9, requires_grad=True)
    loss = softened_kl(student, torch.randn(4, 9), 2.0)
    (slope,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()
