"""Query, key and value of one attention layer, while every layer runs scaled-dot-product attention.

Matching attention maps needs the scores of one layer only. `output_attentions=True` would turn every layer
eager; here one attention function is registered with transformers that runs SDPA and hands query, key and value
of the chosen layer, after any rotary embedding, to a sink that the call carries along. A mask function is
registered under the same name: without one, transformers would build no mask and padding would be attended.

The same wrapper returns the input of the output embeddings instead of logits, so that no `[B, S, V]` tensor exists
unless somebody multiplies one out.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "comet_tap"
PROBE_LENGTH = 5
_USE = "use a BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT, DistilBERT or ModernBERT model"

Layer = int | Literal["last", "upper-middle"]


def layer_index(layer: Layer, layers: int, name: str = "the model") -> int:
    """The index of a layer, from 0, among the `layers` of a model.

    `upper-middle` is layer round(19/24 · layers), counted from 1: of large teachers MiniLMv2 (Wang et al., 2021,
    arXiv 2012.15828) imitates an upper middle layer instead of the last, the 19th of XLM-R-large's 24. Of 12 layers
    that is the 10th, of 6 the 5th.

    Raises:
        ValueError: there is no such layer.
    """
    if layer == "last":
        return layers - 1
    if layer == "upper-middle":
        return max((2 * 19 * layers + 24) // (2 * 24), 1) - 1
    if not -layers <= layer < layers:
        raise ValueError(
            f"attention_layer: got {layer}, but {name} has {layers} layers; "
            f"choose last, upper-middle, or a number from {-layers} to {layers - 1}"
        )
    return layer % layers


@dataclass
class AttentionSink:
    """Receives query, key and value `[B, H, S, D]` and the scale of one layer during one forward pass.

    Layers are told apart by the order in which they run: not every model numbers its attention modules. Layers that
    run again for the gradient (checkpointing) are later in that order than any, and change nothing.
    """

    layer: int
    layers_run: int = 0
    taken: tuple[Tensor, Tensor, Tensor, float] | None = None

    def offer(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Keep these if this is the layer; heads of key and value shared by a group are repeated."""
        if self.layers_run == self.layer:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            groups = query.shape[1] // key.shape[1]
            self.taken = (query, repeat_kv(key, groups), repeat_kv(value, groups), scale)
        self.layers_run += 1

    def release(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """What was taken; layers that may run again hold the sink, and would hold this with it."""
        taken, self.taken = self.taken, None
        assert taken is not None
        return taken


def _tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    attention_sink: AttentionSink | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if attention_sink is not None:
        attention_sink.offer(query, key, value, scaling)
    return cast(
        tuple[Tensor, None],
        sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        ),
    )


AttentionInterface.register(IMPLEMENTATION, _tapped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class Attention:
    """What the attention of one layer was given in one forward pass.

    Attributes:
        query: `[B, H, S, D]`, after any rotary embedding.
        key: `[B, H, S, D]` likewise.
        value: `[B, H, S, D]` likewise.
        scale: what multiplies `query · key` before the softmax.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float


@dataclass(frozen=True)
class Tapped(Attention):
    """What one forward pass of a `TappedEncoder` gives.

    Attributes:
        hidden: `[B, S, E]`, the input of the output embeddings (`E` is their width).
    """

    hidden: Tensor


class _HiddenInsteadOfLogits:
    """Stands in for the forward of the output embeddings: their input passes through."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden


class TappedEncoder(nn.Module):
    """A masked language model that returns head inputs and what one layer's attention was given.

    Args:
        model: any encoder with an MLM head whose attention goes through transformers' `AttentionInterface`.
        layer: the tapped layer: `last`, `upper-middle` (see `layer_index`), or a number from 0; negative ones count
            from the last.

    Raises:
        ValueError: the model does not use that interface, has no such layer, has no output embeddings,
            or the layer attends to a window or with a position bias, so that `query · key` is not its map.
    """

    def __init__(self, model: PreTrainedModel, layer: Layer = "last") -> None:
        super().__init__()
        self.model = model
        self.name = model.config.name_or_path or type(model).__name__
        self.layer = layer_index(layer, model.config.num_hidden_layers, self.name)
        tap_attention(model, self.layer, self.name)
        self._require_head()
        expected = None if self.output_weight.is_meta else self._logits_of_few_tokens()
        vars(self._head)["forward"] = _HiddenInsteadOfLogits()
        if expected is not None:
            self._probe(expected)

    @property
    def width(self) -> int:
        """Of hidden states, and of the heads of a query, key or value together."""
        return int(self.model.config.hidden_size)

    @property
    def output_weight(self) -> Tensor:
        """`[V, E]`: the output embeddings."""
        return self._head.weight

    @property
    def output_bias(self) -> Tensor | None:
        """`[V]`, or None."""
        return self._head.bias

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tapped:
        """Run the encoder.

        Args:
            input_ids: `[B, S]` int64.
            attention_mask: `[B, S]` bool or int64, true on real tokens; None when nothing is padded.
        """
        sink = AttentionSink(self.layer)
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, attention_sink=sink
        ).logits
        return Tapped(*sink.release(), hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Multiply out what `forward` left: `[..., E]` to `[..., V]`."""
        return nn.functional.linear(hidden, self.output_weight, self.output_bias)

    def freeze_above_attention(self, *, keep_value: bool) -> None:
        """Freeze the parameters that query and key of the tapped layer do not depend on, nor its value if that is kept.

        DDP waits for a gradient of every parameter that is not frozen.
        """
        trained = [value for value in self.parameters() if value.requires_grad]
        sink, _ = self._read_few_tokens()
        assert sink.taken is not None
        query, key, value, _ = sink.taken
        reached = query.sum() + key.sum() + (value.sum() if keep_value else 0)
        found = torch.autograd.grad(reached, trained, allow_unused=True)
        for parameter, gradient in zip(trained, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _read_few_tokens(self) -> tuple[AttentionSink, Tensor]:
        """What a pass over a few tokens, without dropout, offers to the sink, and the head's input."""
        ids_BS = torch.full((1, PROBE_LENGTH), 5, device=self.output_weight.device)
        sink = AttentionSink(self.layer)
        was_training = self.model.training
        hidden = self.model.eval()(input_ids=ids_BS, attention_sink=sink).logits
        self.model.train(was_training)
        return sink, hidden

    def _require_head(self) -> None:
        if not isinstance(self.model.get_output_embeddings(), nn.Linear):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) has no linear output embeddings; "
                "a teacher or student needs a masked-language-model head"
            )

    @torch.no_grad()
    def _logits_of_few_tokens(self) -> Tensor:
        try:
            return self._read_few_tokens()[1]
        except TypeError as error:  # an argument that layers would get is refused
            raise ValueError(_hidden_attention(self.model, self.name)) from error

    @torch.no_grad()
    def _probe(self, expected: Tensor) -> None:
        """Find out on a few tokens, not in the middle of a run, whether query, key and head input arrive.

        Args:
            expected: logits of these tokens, before the head was bypassed.
        """
        try:
            sink, hidden = self._read_few_tokens()
            found = self.logits(hidden)
        except RuntimeError:  # what comes after the output embeddings expects logits
            found = expected.new_full((), torch.nan)
        else:
            if sink.taken is None:
                raise ValueError(_hidden_attention(self.model, self.name))
        if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        ):
            raise ValueError(
                f"{self.name} is of type {self.model.config.model_type} ({type(self.model).__name__}), which changes "
                f"its logits after the output embeddings, so its head cannot be fused; {_USE}"
            )


def _hidden_attention(model: PreTrainedModel, name: str) -> str:
    return (
        f"{name} is of type {model.config.model_type} ({type(model).__name__}), which does not hand query and key to "
        f"transformers' attention interface, so they cannot be read; {_USE}"
    )


def tap_attention(model: PreTrainedModel, layer: int, name: str) -> None:
    """Let every layer offer query, key and value to the sink that a call of the model carries along.

    Args:
        model: changed.
        layer: the one that is to be read, from 0.
        name: of the model, for messages.

    Raises:
        ValueError: the model's attention cannot be read, or that layer attends to a window of tokens.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(_hidden_attention(model, name))
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None and kinds[layer] != "full_attention":
        window = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
        raise ValueError(
            f"attention_layer: layer {layer} of {name} attends to a window of tokens "
            f"only; choose one with full attention: {window}"
        )
    model.set_attn_implementation(IMPLEMENTATION)


def usable_positions(model: PreTrainedModel) -> int:
    """The longest sequence, in tokens, that the model has positions for.

    RoBERTa and its kin count positions from `padding_idx + 1`, so two of XLM-R's 514 are never used.
    """
    limit = int(getattr(model.config, "max_position_embeddings", None) or sys.maxsize)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings
            if module.padding_idx is not None:
                limit -= module.padding_idx + 1
    return limit


def require_positions(model: PreTrainedModel, length: int, key: str, name: str) -> None:
    """Refuse sequences that are longer than a model has positions for.

    Args:
        model: that will read them.
        length: the longest of them, in tokens.
        key: of the recipe, that decides it.
        name: of the model, for messages.

    Raises:
        ValueError: they are.
    """
    positions = usable_positions(model)
    if length > positions:
        raise ValueError(
            f"{key}: got {length}, but {name} has positions for {positions} tokens; lower it to {positions} or less"
        )
