"""What a teacher does on some text, as second moments: of what its layers normalise, read and write.

A moment is `[n + 1, n + 1]` float64: the mean over tokens of [x; 1] [x; 1]ᵀ. Sums of a batch are taken in float32.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel

from comet.anatomy import Anatomy
from comet.batch import Batch

TOKENS = 8192  # real ones, that are enough


@dataclass
class Moments:
    """Of a teacher, over real tokens.

    Attributes:
        embedding: of the sum of embeddings, normalised, before scale and shift.
        inputs: layer → of what its queries read, where no norm of the layer comes before them.
        attention: layer → of what its attention norm normalises, normalised, before scale and shift.
        mlp: layer → likewise of the norm of the feed-forward layer.
        output: layer → of what all heads give.
        down: layer → of what the neurons give.
        final: likewise of the norm after the last layer; None without one.
        head: of what the head's dense layer reads, followed by what its norm normalises, normalised.
        counts: `[V]`, how often each entry was read.
    """

    embedding: Tensor
    head: Tensor
    counts: Tensor
    final: Tensor | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    output: dict[int, Tensor] = field(default_factory=dict)
    down: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def measure_moments(
    teacher: PreTrainedModel,
    anatomy: Anatomy,
    layers: Sequence[int],
    batches: Iterable[Batch],
) -> Moments:
    """Let a teacher read some text.

    Args:
        teacher: in float32; left in evaluation mode.
        anatomy: its parts.
        layers: those that are of interest.
        batches: read until there were enough real tokens, or no more.
    """
    sums = _Sums()
    sums.watch_all(anatomy, layers)
    counts = torch.zeros(len(anatomy.tokens), dtype=torch.float64)
    teacher.eval()
    try:
        for batch in batches:
            ids = batch.input_ids.flatten()
            real = slice(None) if batch.mask is None else batch.mask.flatten().bool()
            sums.real = real
            teacher(input_ids=batch.input_ids, attention_mask=batch.mask)
            counts += torch.bincount(ids[real], minlength=len(counts))
            if counts.sum() >= TOKENS:
                break
    finally:
        sums.end()
    found = Moments(sums.mean("embedding"), sums.mean("head"), counts)
    for key in sums.totals:
        if isinstance(key, tuple):
            getattr(found, key[0])[key[1]] = sums.mean(key)
    if anatomy.final_norm is not None:
        found.final = sums.mean("final")
    return found


class _Sums:
    """Sums of [x; 1] [x; 1]ᵀ by name, filled while the teacher runs."""

    def __init__(self) -> None:
        self.totals: dict[str | tuple[str, int], Tensor] = {}
        self.real: slice | Tensor = slice(None)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._read = torch.empty(0)

    def watch_all(self, anatomy: Anatomy, layers: Sequence[int]) -> None:
        """Hook what belongs to some layers, the embeddings and the head."""
        self._watch_norm("embedding", anatomy.embedding_norm)
        for number in sorted(set(layers)):
            layer = anatomy.layers[number]
            if not anatomy.pre_norm or layer.attention_norm is None:
                self._watch_input(("inputs", number), layer.input_module)
            if layer.attention_norm is not None:
                self._watch_norm(("attention", number), layer.attention_norm)
            self._watch_norm(("mlp", number), layer.mlp_norm)
            self._watch_input(("output", number), layer.output_module)
            self._watch_input(("down", number), layer.down_module)
        if anatomy.final_norm is not None:
            self._watch_norm("final", anatomy.final_norm)
        self._watch(anatomy.head_module, lambda x: setattr(self, "_read", x))
        # logits over the vocabulary would take most of the time and memory, and nobody asks for them
        self._hooks.append(
            anatomy.output_module.register_forward_pre_hook(lambda _, x: (x[0][:1, :1],))
        )
        norm = anatomy.head_norm
        self._watch(
            norm, lambda x: self._add("head", torch.cat([self._read, _normalised(x, norm)], 1))
        )

    def mean(self, key: str | tuple[str, int]) -> Tensor:
        """The moment."""
        return self.totals[key] / self.totals[key][-1, -1]

    def end(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _watch_input(self, key: str | tuple[str, int], module: nn.Module) -> None:
        self._watch(module, lambda x: self._add(key, x))

    def _watch_norm(self, key: str | tuple[str, int], norm: nn.LayerNorm) -> None:
        self._watch(norm, lambda x: self._add(key, _normalised(x, norm)))

    def _watch(self, module: nn.Module, use: Callable[[Tensor], None]) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            use(inputs[0].flatten(0, -2)[self.real])

        self._hooks.append(module.register_forward_pre_hook(hook))

    def _add(self, key: str | tuple[str, int], x: Tensor) -> None:
        joint = torch.cat([x, torch.ones(len(x), 1)], 1)
        product = (joint.T @ joint).double()
        self.totals[key] = self.totals[key] + product if key in self.totals else product


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=norm.eps)
