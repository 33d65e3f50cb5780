"""A frozen model under mixed precision: the weights of its products are rounded once instead of at every step.

Autocast rounds a linear layer's weight to 16 bits whenever the layer runs. A weight that never changes can be kept as
what it is rounded to: the results are the same bit for bit, half the bytes stay in memory, and nothing is converted. A
CPU without instructions for bfloat16 emulates its products, in several times the time of float32; there a weight is
kept in bfloat16 just the same, but multiplied in float32, so that only the weights are rounded and not what they are
multiplied with. Embeddings, normalisation and the output embeddings stay as they are.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from comet.tap import TappedEncoder
from comet_kernels.ops import launch
from comet_kernels.ops.softened_kl.linear_pieces import cpu_multiplies_bfloat16


def round_weights(encoder: TappedEncoder, precision: str, device: torch.device) -> None:
    """Keep the weights of an encoder's linear layers in the precision of products; nothing changes for float32.

    Args:
        encoder: never trained again; in float32. From here on it runs under autocast only.
        precision: `float32`, `bfloat16` or `float16`.
        device: where it is to run.
    """
    if precision == "float32":
        return
    emulated = device.type == "cpu" and not cpu_multiplies_bfloat16()
    head = encoder.model.get_output_embeddings()
    for module in encoder.modules():
        if isinstance(module, nn.Linear) and module is not head:
            rounded = module.weight.detach().to(getattr(torch, precision))
            module.weight = nn.Parameter(rounded, requires_grad=False)
            if emulated:
                vars(module)["forward"] = functools.partial(_multiply_in_float32, module)


def _multiply_in_float32(module: nn.Linear, hidden: Tensor) -> Tensor:
    with launch.without_autocast(hidden.device):
        return linear(hidden.float(), module.weight.float(), module.bias)
