import warnings

import pytest
import torch
from accounting import Allocations
from accuracy import assert_accurate, divergence, relative_rms
from linear_problems import NAMES, double, judge, make, of_rounded_logits, run

from comet_kernels.ops.softened_kl import linear_pieces, linear_softened_kl, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def equal(found, wanted):
    return all(
        (one is None and other is None) or torch.equal(one, other)
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.fixture
def small_pieces(monkeypatch):
    """Some rows at a time, the last piece a shorter one."""
    monkeypatch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_the_definition(device, dtype, bias, small_pieces):
    student, teacher = make(11, 1009, 24, 40, dtype, device, bias)
    temperature = 1 + torch.rand(11, device=device)
    mask = torch.arange(11, device=device) % 4 != 2
    for degrees, chosen, incoming in ((2.0, None, 1.0), (temperature, mask, 1e-3)):
        found = run(linear_softened_kl, student, teacher, degrees, chosen, incoming)
        # The error of one number that comes of rounded logits is a matter of luck.
        slack = 2 if dtype == torch.float32 else 4
        judge(found, student, teacher, degrees, chosen, incoming, slack=slack)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_gradients_survive_small_factors(device, small_pieces):
    """Unscaled, 16 bits hold them; 1 / rows is applied in float32, together with a gradient scaler's factor."""
    student, teacher = make(11, 1009, 24, 40, torch.float16, device)
    found = run(linear_softened_kl, student, teacher, incoming=4096.0)
    judge(found, student, teacher, incoming=4096.0, slack=4)


@pytest.mark.gpu
def test_a_float16_student_close_to_its_teacher():
    """With 250,002 columns most of the logits' gradient lies below what float16 holds."""
    student, _ = make(64, 250002, 256, 8, torch.float16, "cuda")
    nearly = [tensor + 0.02 * torch.randn_like(tensor) for tensor in student]
    judge(run(linear_softened_kl, nearly, student, 2.0), nearly, student, 2.0)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 40.0])
def test_float16_products_are_enlarged_and_reduced(temperature, monkeypatch, small_pieces):
    """What a GPU's library does, 16-bit factors and float32 sums, in float32 here."""
    monkeypatch.setattr(linear_pieces, "_products_in_float32", lambda device: True)
    monkeypatch.setattr(linear_pieces, "product", lambda left, right: left.float() @ right.float())
    student, _ = make(11, 20011, 24, 8, torch.float16)
    nearly = [tensor + 0.02 * torch.randn_like(tensor) for tensor in student]
    mask = torch.arange(11) % 4 != 2
    degrees = torch.full((11,), temperature).masked_fill(~mask, float("nan"))
    for chosen in (None, mask):
        # As a gradient scaler would: the results are float16 as well.
        arguments = (nearly, student, temperature if chosen is None else degrees, chosen, 4096.0)
        found = run(linear_softened_kl, *arguments)
        oracle = of_rounded_logits(torch.float16, *arguments)
        for what, actual, truth in zip(NAMES[1:], found[1:], oracle[1:], strict=True):
            assert relative_rms(actual, truth) < 1e-3, what


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("distance", [1e-1, 1e-2])
def test_a_student_close_to_its_teacher(distance, temperature, small_pieces):
    """Of its own logits, as their rounding is more than the rest."""
    student, _ = make(9, 2003, 24, 8)
    nearly = [tensor + distance * torch.randn_like(tensor) for tensor in student]
    loss, kl = linear_softened_kl(*nearly, *student, temperature, return_kl=True)
    logits = [torch.nn.functional.linear(*side[:2]) + side[2] for side in (nearly, student)]
    truth = divergence(*logits, temperature)[0]
    assert ((kl.double() - truth).abs() <= 1e-3 * truth).all()
    assert abs(loss.item() - (temperature**2 * truth).mean().item()) <= 1e-3 * loss.item()
    same, nothing = linear_softened_kl(*student, *student, temperature, return_kl=True)
    assert same == 0
    assert not nothing.any()


@pytest.mark.parametrize("device", DEVICES)
def test_kl_of_every_row_on_request(device, small_pieces):
    student, teacher = make(11, 1009, 24, 40, device=device)
    mask = torch.arange(11, device=device) % 4 != 2
    for chosen in (None, mask):
        arguments = (*student, *teacher, 2.0, chosen)
        loss, kl = linear_softened_kl(*arguments, return_kl=True)
        _, oracle = reference.linear_softened_kl(
            *double(student), *double(teacher), 2.0, chosen, return_kl=True
        )
        assert_accurate(kl, oracle)
        assert torch.equal(loss, linear_softened_kl(*arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_pieces_do_not_change_the_result(device, monkeypatch):
    student, teacher = make(70, 300, 16, 24, device=device)
    mask = torch.rand(70, device=device) < 0.7
    whole = run(linear_softened_kl, student, teacher, 2.0, mask)
    monkeypatch.setenv("COMET_LOGITS_BYTES", str(30 * 320 * 8))
    pieces = run(linear_softened_kl, student, teacher, 2.0, mask)
    assert not torch.equal(whole[2], pieces[2])  # or the pieces were not smaller
    for one, other in zip(whole, pieces, strict=True):
        assert relative_rms(one, other.double()) < 1e-6
    judge(pieces, student, teacher, 2.0, mask)


@pytest.mark.parametrize("device", DEVICES)
def test_the_vocabulary_of_xlm_r(device):
    student, teacher = make(3, 250002, 16, 24, device=device)
    judge(run(linear_softened_kl, student, teacher), student, teacher)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_shapes_on_a_gpu(dtype):
    student, teacher = make(700, 50021, 256, 512, dtype, "cuda")
    mask = torch.rand(700, device="cuda") < 0.8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(linear_softened_kl, student, teacher, 2.0, mask)
    judge(found, student, teacher, 2.0, mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0)])
def test_partial_gradients(device, needs, small_pieces):
    student, teacher = make(7, 33, 8, 12, device=device)
    found = run(linear_softened_kl, student, teacher, needs=needs)
    whole = run(linear_softened_kl, student, teacher)
    assert equal(found[:1], whole[:1])
    for needed, one, other in zip(needs, found[1:], whole[1:], strict=True):
        assert torch.equal(one, other) if needed else one is None


def test_no_gradient_work_where_none_is_needed(monkeypatch):
    student, teacher = make(7, 33, 8, 12)
    monkeypatch.setattr(linear_pieces.rows, "backward", None)
    run(linear_softened_kl, student, teacher, needs=(0, 0, 0))
    with torch.no_grad():
        run(linear_softened_kl, student, teacher)
    for tensor in teacher:
        tensor.requires_grad_()
    assert not linear_softened_kl(*student, *teacher, 2.0).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_rows_left_out_do_not_matter(device, small_pieces):
    student, teacher = make(9, 33, 8, 12, device=device)
    mask = torch.arange(9, device=device) % 3 != 1
    clean = run(linear_softened_kl, student, teacher, 2.0, mask)
    temperature = torch.full((9,), 2.0, device=device).masked_fill(~mask, float("nan"))
    for bad in (float("nan"), float("inf")):
        dirty_student = [student[0].masked_fill(~mask[:, None], bad), *student[1:]]
        dirty_teacher = [teacher[0].masked_fill(~mask[:, None], bad), *teacher[1:]]
        found = run(linear_softened_kl, dirty_student, dirty_teacher, temperature, mask)
        assert equal(found, clean)
    assert clean[1][~mask].eq(0).all()
    student[0][3] = float("nan")
    assert run(linear_softened_kl, student, teacher, 2.0, mask)[0].isnan()


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_chosen(device):
    student, teacher = make(5, 33, 8, 12, device=device)
    nothing = torch.zeros(5, dtype=torch.bool, device=device)
    empty = make(0, 33, 8, 12, device=device)
    for found in (
        run(linear_softened_kl, student, teacher, 2.0, nothing),
        run(linear_softened_kl, *empty),
    ):
        assert all(t.eq(0).all() for t in found)
        assert found[2].shape == (33, 8)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_twice(device, small_pieces):
    student, teacher = make(9, 1009, 24, 40, device=device)
    first, second = (run(linear_softened_kl, student, teacher) for _ in range(2))
    assert equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_backward_twice_is_the_same_twice(device):
    student, teacher = make(5, 33, 8, 12, device=device)
    weight = student[1].requires_grad_()
    loss = linear_softened_kl(*student, *teacher, 2.0)
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight, torch.tensor(1.0, device=device))
    assert torch.equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    student, teacher = make(5, 33, 8, 12, device=device)
    for tensor in student:
        tensor.requires_grad_()
    temperature = torch.full((5,), 2.0, device=device)
    mask = torch.arange(5, device=device) != 2
    op = torch.ops.comet.linear_softened_kl.default
    torch.library.opcheck(op, (*student, *teacher, temperature, mask, None, True, True, True))
    student = [student[0].detach(), student[1], None]
    arguments = (temperature, None, torch.bfloat16, False, True, False)
    torch.library.opcheck(op, (*student, *teacher, *arguments))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(device, dynamic, fresh_compiler):
    compiled = torch.compile(
        linear_softened_kl, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for n in (5, 8):
        student, teacher = make(n, 33, 8, 12, device=device)
        mask = torch.arange(n, device=device) != 2
        for needs in ((1, 1, 1), (1, 0, 0), (0, 0, 0)):
            arguments = (student, teacher, 2.0, mask, 1.0, needs)
            assert equal(run(linear_softened_kl, *arguments), run(compiled, *arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device, small_pieces, monkeypatch):
    """Products in autocast's dtype; weights stay float32 and so does their gradient."""
    monkeypatch.setattr(linear_pieces, "cpu_multiplies_bfloat16", lambda: True)
    student, teacher = make(9, 1009, 24, 40, device=device)
    teacher = [teacher[0].bfloat16(), *teacher[1:]]
    with torch.autocast(device, torch.bfloat16):
        found = run(linear_softened_kl, student, teacher)
    low = [[t.bfloat16() for t in side] for side in (student, teacher)]
    assert [t.dtype for t in found] == [torch.float32] * 4
    expected = run(linear_softened_kl, *low)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(one.bfloat16(), other)
    assert relative_rms(found[2], expected[2].double()) > 1e-4  # float32, not bfloat16 widened
    with pytest.raises(ValueError, match=r"teacher_weight: got torch.float32, expected"):
        linear_softened_kl(*student, *teacher, 2.0)


def test_float32_heads_stay_on_a_cpu_that_cannot_multiply_bfloat16(monkeypatch):
    student, teacher = make(9, 1009, 24, 40)
    monkeypatch.setattr(linear_pieces, "cpu_multiplies_bfloat16", lambda: False)
    expected = run(linear_softened_kl, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(run(linear_softened_kl, student, teacher), expected)
    low = [[t.bfloat16() for t in side] for side in (student, teacher)]
    assert linear_pieces.dtype_of_products(*low[0][:2], None) == torch.bfloat16


def test_weight_gradients_add_up_in_float32(monkeypatch):
    """Many pieces: their sum in bfloat16 would lose what each adds."""
    student, teacher = make(256, 64, 8, 12, torch.bfloat16)
    monkeypatch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: 1)
    found = run(linear_softened_kl, student, teacher)
    monkeypatch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: n)
    whole = run(linear_softened_kl, student, teacher)
    oracle = run(reference.linear_softened_kl, double(student), double(teacher))
    for one, other, truth in zip(found[2:], whole[2:], oracle[2:], strict=True):
        assert relative_rms(one, truth) < 1.5 * relative_rms(other, truth)


@pytest.mark.parametrize("needs", [(True, True, True), (False, False, False)])
def test_never_holds_all_logits(monkeypatch, needs):
    n, v = 640, 2003
    student, teacher = make(n, v, 8, 12)
    budget = 160 * 2048 * 8
    monkeypatch.setenv("COMET_LOGITS_BYTES", str(budget))
    temperature = torch.full((n,), 2.0)
    with Allocations() as seen:
        linear_pieces.total_and_gradients(*student, *teacher, temperature, None, None, needs)
    gradients = sum(t.nbytes for t in student) if any(needs) else 0
    assert seen.largest_bytes <= budget
    assert seen.peak_bytes <= budget + gradients + 64 * n + 4 * v
    assert 2 * n * v * 4 > 3 * budget  # or nothing is shown


def test_backward_holds_the_gradients_alone():
    student, teacher = make(4, 2003, 8, 12)
    for tensor in student:
        tensor.requires_grad_()
    loss = linear_softened_kl(*student, *teacher, 2.0)
    with Allocations() as seen:
        loss.backward()
    assert seen.peak_bytes <= sum(t.nbytes for t in student) + 64


def test_pieces_are_as_large_as_32_of_them_need():
    linear_pieces._warn_about_budget.cache_clear()
    row = 2 * 4 * 250048
    assert linear_pieces.rows_per_piece(4096, row) == 128
    assert linear_pieces.rows_per_piece(20, row) == 128
    assert linear_pieces.rows_per_piece(0, row) == 128
    assert linear_pieces.rows_per_piece(4096, 1 << 24) == 128  # 16 rows would fit
    assert linear_pieces.rows_per_piece(320, 1 << 24) == 16
    linear_pieces._warn_about_budget.cache_clear()
    with pytest.warns(UserWarning, match="logits take 2048 MiB instead of 256 MiB"):
        linear_pieces.rows_per_piece(4096, 1 << 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_pieces.rows_per_piece(4096, 1 << 24)


STUDENT, TEACHER = make(4, 9, 8, 12)


def changed(**tensors):
    """Valid arguments but for the named ones."""
    names = [f"{side}_{part}" for side in ("student", "teacher") for part in NAMES[1:]]
    arguments = dict(zip(names, STUDENT + TEACHER, strict=True))
    return {**arguments, "temperature": 2.0, **tensors}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(student_hidden=STUDENT[0][0]), "student_hidden: got 1 dimensions"),
        (changed(teacher_weight=TEACHER[2]), "teacher_weight: got 1 dimensions"),
        (changed(student_weight=TEACHER[1]), r"student_weight: got shape \[9, 12\], expected"),
        (changed(student_bias=STUDENT[2][1:]), r"student_bias: got shape \[8\], expected"),
        (changed(student_hidden=STUDENT[0].double()), "student_hidden: got torch.float64"),
        (changed(teacher_weight=TEACHER[1].half()), "teacher_weight: got torch.float16, expected"),
        (changed(student_bias=STUDENT[2].half()), "student_bias: got torch.float16, expected"),
        (changed(student_weight=STUDENT[1].to("meta")), "student_weight: got device meta"),
        (
            changed(teacher_weight=TEACHER[1][:5], teacher_bias=None),
            r"teacher_weight: got shape \[5, 12\], exp",
        ),
        (
            changed(teacher_hidden=TEACHER[0][:3]),
            r"teacher_hidden: got shape \[3, 12\], expected \[N of",
        ),
        (changed(temperature=-1), "temperature: got -1, expected a finite number above 0"),
        (changed(temperature=torch.zeros(4)), "temperature: got 0.0, expected finite numbers"),
        (changed(mask=torch.ones(4, 1).bool()), r"mask: got shape \[4, 1\], expected \[N\]"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_softened_kl(**arguments)


def test_differentiable_once():
    student, teacher = make(4, 9, 8, 12)
    hidden = student[0].requires_grad_()
    loss = linear_softened_kl(*student, *teacher, 2.0)
    (slope,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_softened_kl_backward"):
        (loss + slope.square().sum()).backward()  # a penalty on the gradient is not lost in silence
