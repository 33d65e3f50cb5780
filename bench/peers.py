"""What Comet's ops are compared with beside plain torch: the same under `torch.compile`, and other libraries.

Each function takes the tensors of its benchmark and computes the op's own result: of the KL divergences, T² times the
mean over the tokens of KL(teacher ‖ student) at temperature T. What its library lacks for that is done around it in
torch, inside the timing, and said in its docstring. Weight gradients are summed in float32 wherever the library can.
The versions that these calls were written for are in the extra `peers` of pyproject.toml; a library is imported when
it is first called.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax, softmax

from bench.cases import TEMPERATURE, Case, Implementation


def compiled(function: Callable[..., Any], **given: Any) -> Implementation:
    """A function under `torch.compile`, for one shape at a time.

    Args:
        function: of the benchmark's tensors; called only once something is measured, since it imports the compiler.
        given: arguments that stand in for tensors a case is without.
    """

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    def call(**tensors: Tensor) -> Any:
        return compile_once()(**{**given, **tensors})

    return Implementation(call, peer=True, why_not=_why_not_compiled, compiles=True)


def liger(function: Callable[..., Any], *, with_bias: bool = True) -> Implementation:
    """A function that calls Liger Kernel."""
    return _library("liger-kernel", "liger_kernel", function, with_bias)


def flash_linear_attention(
    function: Callable[..., Any], *, with_bias: bool = True
) -> Implementation:
    """A function that calls flash-linear-attention, whose kernels are the package fla-core."""
    return _library("fla-core", "fla", function, with_bias)


def textbrewer(function: Callable[..., Any]) -> Implementation:
    """A function that calls TextBrewer, whose losses are plain torch and run on any device."""
    return _library("textbrewer", "textbrewer", function, on_cpu=True)


def liger_kl_div(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    """`LigerKLDIVLoss`, which takes log-probabilities: softening and `log_softmax` of both sides are torch's."""
    from liger_kernel.transformers import LigerKLDIVLoss

    student, teacher = (
        log_softmax(logits.float() / TEMPERATURE, dim=-1)
        for logits in (student_logits, teacher_logits)
    )
    loss = LigerKLDIVLoss(reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * loss(student, teacher)


def liger_chunked_jsd(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    temperature: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> Tensor:
    """`LigerFusedLinearJSDLoss` at β = 0, the KL divergence: torch under `torch.compile`, 1024 tokens at a time.

    Everything, `log_softmax` and the sum of the weight's gradient too, is in the inputs' dtype.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    every_token = student_hidden.new_zeros(student_hidden.shape[0], dtype=torch.long)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, temperature=TEMPERATURE
    )
    sides = (student_hidden, student_weight, teacher_hidden, teacher_weight)
    return TEMPERATURE**2 * loss(*sides, every_token, student_bias, teacher_bias)


def liger_fused_jsd(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    temperature: Tensor,
) -> Tensor:
    """`LigerFusedLinearJSD` at β = 0, the KL divergence; it takes no bias."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.0, temperature=TEMPERATURE, accum_dtype=torch.float32)
    sides = (student_hidden, student_weight, teacher_hidden, teacher_weight)
    return TEMPERATURE**2 * loss(*sides, None)


def liger_fused_kl_div(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    temperature: Tensor,
) -> Tensor:
    """`LigerFusedLinearKLDivLoss`, which takes the teacher's probabilities: made whole in torch. It takes no bias."""
    from liger_kernel.transformers import LigerFusedLinearKLDivLoss

    teacher_logits = linear(teacher_hidden, teacher_weight)
    probabilities = softmax(teacher_logits.float() / TEMPERATURE, dim=-1)
    loss = LigerFusedLinearKLDivLoss(temperature=TEMPERATURE, accum_dtype=torch.float32)
    return TEMPERATURE**2 * loss(student_hidden, student_weight, probabilities)


def fla_fused_kl_div(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    temperature: Tensor,
) -> Tensor:
    """`fused_kl_div_loss`, which knows neither bias nor temperature: softened hidden states make softened logits."""
    from fla.modules.fused_kl_div import fused_kl_div_loss

    hidden = (student_hidden / TEMPERATURE, teacher_hidden / TEMPERATURE)
    return TEMPERATURE**2 * fused_kl_div_loss(*hidden, student_weight, teacher_weight)


def textbrewer_att_mse_sum(
    student_query: Tensor, student_key: Tensor, teacher_query: Tensor, teacher_key: Tensor
) -> Tensor:
    """`att_mse_sum_loss`, which takes the maps of every head: made in torch as eager attention of transformers does.

    It sums over heads where Comet takes the mean, so that H heads on both sides give H² times Comet's loss; with other
    numbers of heads it is another loss. Negative entries count 0 (masked scores that some models used to return); there
    are none here. Softmax is in float32, what follows in the inputs' dtype.
    """
    from textbrewer.losses import att_mse_sum_loss

    with torch.no_grad():
        teacher_maps = _maps_of_heads(teacher_query, teacher_key)
    student_maps = _maps_of_heads(student_query, student_key)
    return att_mse_sum_loss(student_maps, teacher_maps) / student_query.shape[1] ** 2


def _maps_of_heads(query_BHSD: Tensor, key_BHSD: Tensor) -> Tensor:
    scores_BHSS = query_BHSD @ key_BHSD.transpose(-1, -2) * query_BHSD.shape[-1] ** -0.5
    return softmax(scores_BHSS, dim=-1, dtype=torch.float32).to(query_BHSD.dtype)


def _why_not_compiled(case: Case) -> str | None:
    if case.device == "cuda" or any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return None
    return (
        "torch.compile needs a C++ compiler for the CPU, and there is no g++ or clang++ on the PATH"
    )


def _library(
    package: str,
    module: str,
    function: Callable[..., Any],
    with_bias: bool = True,
    *,
    on_cpu: bool = False,
) -> Implementation:
    def why_not(case: Case) -> str | None:
        if case.device != "cuda" and not on_cpu:
            return f"{package} is compared with on a GPU only"
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed: pip install -e '.[peers]'"
        if not with_bias and case.without != "bias":
            return f"{function.__name__} takes no bias"
        return None

    return Implementation(function, peer=True, why_not=why_not)
