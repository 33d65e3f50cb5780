"""What every op promises alike, on one table of problems."""

import attention_problems
import linear_problems
import pytest
import torch
from accounting import Products
from accuracy import assert_accurate
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import comet_kernels
from comet_kernels import reference
from comet_kernels.ops.mean_attention import pieces
from comet_kernels.ops.softened_kl import linear_pieces

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def softened_kl(ops, dtype, device, columns):
    student, teacher = (torch.randn(6, columns, device=device).to(dtype) for _ in range(2))
    mask = torch.arange(6, device=device) != 4

    def loss(student):
        return ops.softened_kl(student, teacher.to(student.dtype), 2.0, mask)

    return loss, [student]


def linear_softened_kl(ops, dtype, device, columns):
    def side(size):
        shapes = ((70, size), (columns, size), (columns,))
        return [torch.randn(*shape, device=device).mul(0.3).to(dtype) for shape in shapes]

    student, teacher = side(24), side(37)

    def loss(*student):
        sides = *student, *(tensor.to(student[0].dtype) for tensor in teacher)
        return ops.linear_softened_kl(*sides, 2.0)

    return loss, student


def mean_attention(ops, dtype, device, length):
    query, key = (torch.randn(3, 2, length, 19, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(3, length, length, device=device)
    mask = torch.arange(length, device=device) < torch.tensor([[length], [7], [0]], device=device)

    def loss(query, key):
        return (ops.mean_attention(query, key, mask) * weight).sum()

    return loss, [query, key]


def factors(largest, device):
    left, right = (torch.randn(2, largest, largest, device=device) for _ in range(2))
    return [left, right]


def factorized_projection(ops, dtype, device, length):
    map = torch.randn(3, length, length, device=device).softmax(-1).to(dtype)
    weight = torch.randn(3, length, length, device=device)

    def loss(*tensors):
        return (ops.factorized_projection(*tensors) * weight).sum()

    return loss, [map, *factors(length + 2, device)]


def projected_mse(ops, dtype, device, length):
    student, teacher = torch.randn(2, 3, length, length, device=device).softmax(-1).to(dtype)
    mask = torch.arange(length, device=device) < torch.tensor([[length], [7], [0]], device=device)
    student = torch.where(mask[:, :, None] & mask[:, None], student, 0)

    def loss(student, left, right):
        return ops.projected_mse(student, teacher.to(student.dtype), left, right, mask)

    return loss, [student, *factors(length + 2, device)]


OF_LOGITS = [softened_kl, linear_softened_kl]
OF_MAPS = [mean_attention, factorized_projection, projected_mse]
SIZES = [(op, size) for op in OF_LOGITS for size in (33, 1500, 1999, 2000)] + [
    (op, size) for op in OF_MAPS for size in (7, 37)
]
ALL = OF_LOGITS + OF_MAPS


def differentiated(problem, tensors=None):
    """The loss and its gradients."""
    loss, own = problem
    leaves = [tensor.detach().requires_grad_() for tensor in tensors or own]
    found = loss(*leaves)
    return found.detach(), *torch.autograd.grad(found, leaves)


def made(op, dtype, device, size, ops=comet_kernels):
    torch.manual_seed(0)
    return op(ops, dtype, device, size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "size"), SIZES)
def test_uninitialised_memory_reaches_nothing(op, size, dtype, device):
    """Torch fills with NaN what it allocates: at widths that are padded, and lengths that fill no tile."""
    problem = made(op, dtype, device, size)
    oracle_of = made(op, dtype, device, size, reference)
    oracle = differentiated(oracle_of, [tensor.double() for tensor in oracle_of[1]])
    for found, truth in zip(differentiated(problem), oracle, strict=True):
        assert found.isfinite().all()
        assert_accurate(found, truth, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [33, 1999, 2048])
def test_no_nan_next_to_the_factors_of_products(dtype, columns, monkeypatch):
    """A CPU's matrix unit may read past a row's end and multiply by 0, and 0 · NaN is NaN."""
    monkeypatch.setattr(linear_pieces, "rows_per_piece", lambda n, row_bytes: 4)
    student, teacher = linear_problems.make(10, columns, 24, 37, dtype)
    temperature = torch.full((10,), 2.0)
    needs = (True, True, True)
    with Products() as products:
        linear_pieces.total_and_gradients(*student, *teacher, temperature, None, None, needs)
    assert products.seen == 3 * 4  # of every piece: two sides, two gradients


def test_no_nan_next_to_the_factors_of_attention():
    query, key, gradient = attention_problems.make(3, 2, 37, 19, torch.bfloat16)
    mask = attention_problems.padded([37, 7, 0], 37)
    with Products() as products:
        attention_problems.evaluate(pieces, query, key, gradient, mask)
    assert products.seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", ALL)
def test_activations_may_be_computed_again(op, device):
    loss, tensors = made(op, torch.float32, device, 9)
    wanted = differentiated((loss, tensors))
    for reentrant in (False, True):

        def again(*leaves, reentrant=reentrant):
            return checkpoint(loss, *leaves, use_reentrant=reentrant)

        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        found = again(*leaves)
        found.backward()
        gradients = [leaf.grad for leaf in leaves]
        assert all(map(torch.equal, (found.detach(), *gradients), wanted))


@pytest.mark.parametrize("ops", [comet_kernels, reference])
@pytest.mark.parametrize("op", ALL)
def test_tensors_without_data_give_shapes(op, ops):
    found = differentiated(made(op, torch.float32, "cpu", 9, ops))
    wanted = [(tensor.shape, tensor.dtype) for tensor in found]
    on_meta = differentiated(made(op, torch.float32, "meta", 9, ops))
    assert [(tensor.shape, tensor.dtype) for tensor in on_meta] == wanted
    assert all(tensor.is_meta for tensor in on_meta)
    with FakeTensorMode():
        fake = differentiated(made(op, torch.float32, "cpu", 9, ops))
    assert [(tensor.shape, tensor.dtype) for tensor in fake] == wanted


def jvp(loss, tensors):
    return torch.func.jvp(loss, (*tensors,), tuple(map(torch.ones_like, tensors)))


def nested_jvp(loss, tensors):
    """A tangent of an outer level, inside of an inner one."""
    one = torch.ones(())

    def outer(scaled):
        return torch.func.jvp(lambda other: other * loss(scaled, *tensors[1:]), (one,), (one,))

    return torch.func.jvp(outer, tuple(tensors[:1]), (tensors[0],))


def dual_numbers(loss, tensors):
    with forward_ad.dual_level():
        return loss(*(forward_ad.make_dual(tensor, tensor) for tensor in tensors))


def dual_numbers_that_require_a_gradient(loss, tensors):
    return dual_numbers(loss, [tensor.detach().requires_grad_() for tensor in tensors])


@pytest.mark.parametrize(
    "mode", [jvp, nested_jvp, dual_numbers, dual_numbers_that_require_a_gradient]
)
@pytest.mark.parametrize("op", ALL)
def test_forward_mode_differentiation_is_refused(op, mode):
    message = (
        f"^{op.__name__} has no forward-mode derivative .* comet_kernels.reference.{op.__name__}"
    )
    with pytest.raises(NotImplementedError, match=message):
        mode(*made(op, torch.float32, "cpu", 9))
    mode(*made(op, torch.float32, "cpu", 9, reference))


@pytest.mark.parametrize("op", ALL)
def test_constants_within_forward_mode_differentiation_are_no_trouble(op):
    loss, tensors = made(op, torch.float32, "cpu", 9)
    one = torch.ones(())
    found = torch.func.jvp(lambda factor: factor * loss(*tensors), (one,), (one,))
    assert torch.equal(*found)


LOGITS, MASK, ROWS = torch.zeros(4, 9), torch.ones(4).bool(), torch.ones(4)
QUERY, MAP, FACTOR = torch.zeros(2, 3, 5, 8), torch.zeros(2, 5, 5), torch.zeros(3, 7, 7)
HIDDEN, WEIGHT, BIAS = torch.zeros(4, 8), torch.zeros(9, 8), torch.zeros(9)
ARGUMENTS = {
    "softened_kl": {
        "student": LOGITS,
        "teacher": LOGITS,
        "temperature": ROWS,
        "mask": MASK,
    },
    "softened_kl_backward": {
        "student": LOGITS,
        "teacher": LOGITS,
        "temperature": ROWS,
        "mask": MASK,
        "scale": ROWS,
        "statistics": torch.zeros(4, 4),
    },
    "linear_softened_kl": {
        "student_hidden": HIDDEN,
        "student_weight": WEIGHT,
        "student_bias": BIAS,
        "teacher_hidden": HIDDEN,
        "teacher_weight": WEIGHT,
        "teacher_bias": BIAS,
        "temperature": ROWS,
        "mask": MASK,
        "autocast": None,
        "hidden_needs": True,
        "weight_needs": True,
        "bias_needs": True,
    },
    "linear_softened_kl_backward": {
        "gradient": torch.ones(()),
        "gradients": [HIDDEN, WEIGHT],
        "inputs": [HIDDEN, WEIGHT],
    },
    "mean_attention": {"query": QUERY, "key": QUERY, "mask": torch.ones(2, 5).bool(), "scale": 0.5},
    "mean_attention_backward": {
        "gradient": MAP,
        "query": QUERY,
        "key": QUERY,
        "mask": None,
        "statistics": torch.zeros(2, 3, 0),
        "scale": 0.5,
        "query_needs": True,
        "key_needs": True,
    },
    "factorized_projection": {"map": MAP, "left": FACTOR, "right": FACTOR, "in_bfloat16": False},
    "factorized_projection_backward": {
        "gradient": MAP,
        "map": MAP,
        "left": FACTOR,
        "right": FACTOR,
        "map_needs": True,
        "left_needs": True,
        "right_needs": True,
        "in_bfloat16": False,
    },
    "projected_mse": {
        "student_map": MAP,
        "teacher_map": MAP,
        "left": FACTOR,
        "right": FACTOR,
        "mask": torch.ones(2, 5).bool(),
        "map_needs": True,
        "left_needs": True,
        "right_needs": True,
        "in_bfloat16": False,
    },
}


def test_the_arguments_are_those_of_every_op():
    ops = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
           if name.startswith("comet::")}  # fmt: skip
    assert ops == ARGUMENTS.keys()
    for name, arguments in ARGUMENTS.items():
        getattr(torch.ops.comet, name)(**arguments)


def spoilt(tensor):
    """A tensor that native code must not read in another's place: shorter, of another rank or dtype."""
    shorter = [tensor.narrow(dim, 0, size - 1) for dim, size in enumerate(tensor.shape)]
    return [*shorter, tensor[None], tensor.double()]


# Neither is read where there are as many as fit: another number of maps, statistics that the CPU has none of.
FREE = {("factorized_projection", "map", 0), ("mean_attention_backward", "statistics", None)}


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, arguments in ARGUMENTS.items()
        for argument, value in arguments.items()
        if isinstance(value, torch.Tensor) and (name, argument, None) not in FREE
    ],
)
def test_ops_called_directly_check_their_arguments(name, argument):
    arguments = ARGUMENTS[name]
    for number, wrong in enumerate(spoilt(arguments[argument])):
        if (name, argument, number) not in FREE:
            with pytest.raises(ValueError, match=r": got .*, expected "):
                getattr(torch.ops.comet, name)(**{**arguments, argument: wrong})


def test_a_teacher_of_one_row_is_not_read_past_its_end():
    with pytest.raises(
        ValueError, match=r"teacher_logits: got shape \[1, 9\], expected \[N, V\] of"
    ):
        torch.ops.comet.softened_kl(LOGITS, LOGITS[:1], ROWS, None)
