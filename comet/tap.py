"""Query and key of one attention layer, while every layer runs scaled-dot-product attention.

Matching attention maps needs the scores of one layer only. `output_attentions=True` would turn every layer
eager; here one attention function is registered with transformers that runs SDPA and hands the query and key
of the chosen layer, after any rotary embedding, to a sink that the call carries along. A mask function is
registered under the same name: without one, transformers would build no mask and padding would be attended.

The same wrapper returns the input of the output embeddings instead of logits, so that no `[B, S, V]` tensor exists
unless somebody multiplies one out.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "comet_tap"
PROBE_LENGTH = 5


@dataclass
class AttentionSink:
    """Receives query and key `[B, H, S, D]` and the scale of one layer during one forward pass.

    Layers are told apart by the order in which they run: not every model numbers its attention modules.
    """

    layer: int
    layers_run: int = 0
    taken: tuple[Tensor, Tensor, float] | None = None

    def offer(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Keep query and key if this is the layer; key heads shared by a group are repeated."""
        if self.layers_run == self.layer:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            key = repeat_kv(key, query.shape[1] // key.shape[1])
            self.taken = (query, key, scale)
        self.layers_run += 1


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
        attention_sink.offer(query, key, scaling)
    return cast(
        tuple[Tensor, None],
        sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        ),
    )


AttentionInterface.register(IMPLEMENTATION, _tapped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class Tapped:
    """What one forward pass of a `TappedEncoder` gives.

    Attributes:
        hidden: `[B, S, E]`, the input of the output embeddings (`E` is their width).
        query: `[B, H, S, D]` of the tapped layer, after any rotary embedding.
        key: `[B, H, S, D]` likewise.
        scale: what multiplies `query · key` before the softmax.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    scale: float


class _HiddenInsteadOfLogits:
    """Stands in for the forward of the output embeddings: their input passes through."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden


class TappedEncoder(nn.Module):
    """A masked language model that returns head inputs and one layer's query and key.

    Args:
        model: any encoder with an MLM head whose attention goes through transformers' `AttentionInterface`.
        layer: the tapped layer; negative numbers count from the last.

    Raises:
        ValueError: the model does not use that interface, has no such layer, has no output embeddings,
            or the layer attends to a window or with a position bias, so that `query · key` is not its map.
    """

    def __init__(self, model: PreTrainedModel, layer: int = -1) -> None:
        super().__init__()
        self.model = model
        self.name = model.config.name_or_path or type(model).__name__
        layers = model.config.num_hidden_layers
        if not -layers <= layer < layers:
            raise ValueError(
                f"attention_layer: got {layer}, but {self.name} has {layers} layers; "
                f"choose from {-layers} to {layers - 1}"
            )
        self.layer = layer % layers
        self._tap_attention()
        self._bypass_head()
        self._probe()

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
        assert sink.taken is not None
        query, key, scale = sink.taken
        return Tapped(hidden, query, key, scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """Multiply out what `forward` left: `[..., E]` to `[..., V]`."""
        return nn.functional.linear(hidden, self.output_weight, self.output_bias)

    def _tap_attention(self) -> None:
        if not getattr(self.model, "_supports_attention_backend", False):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) does not use transformers' attention "
                "interface, so its query and key cannot be read; use a BERT, RoBERTa, XLM-R, "
                "ELECTRA, CamemBERT or ModernBERT model"
            )
        window = self._sliding_window()
        if window is not None:
            raise ValueError(
                f"attention_layer: layer {self.layer} of {self.name} attends to a window of tokens "
                f"only; choose one with full attention: {window}"
            )
        self.model.set_attn_implementation(IMPLEMENTATION)

    def _sliding_window(self) -> list[int] | None:
        """The layers with full attention, if the tapped one is not among them."""
        kinds = getattr(self.model.config, "layer_types", None)
        if kinds is None or kinds[self.layer] == "full_attention":
            return None
        return [number for number, kind in enumerate(kinds) if kind == "full_attention"]

    def _bypass_head(self) -> None:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) has no linear output embeddings; "
                "a teacher or student needs a masked-language-model head"
            )
        vars(head)["forward"] = _HiddenInsteadOfLogits()

    def _probe(self) -> None:
        """Find out on a few tokens, not in the middle of a run, whether query, key and head input arrive."""
        device = self.output_weight.device
        if device.type == "meta":
            return
        ids_BS = torch.full((1, PROBE_LENGTH), 5, device=device)
        sink = AttentionSink(self.layer)
        was_training = self.model.training
        with torch.no_grad():
            hidden = self.model.eval()(input_ids=ids_BS, attention_sink=sink).logits
        self.model.train(was_training)
        if sink.taken is None:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) does not hand its layers' query and key "
                "to transformers' attention interface; use a BERT, RoBERTa, XLM-R, ELECTRA, "
                "CamemBERT or ModernBERT model"
            )
        if hidden.shape[-1] != self._head.in_features:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) changes its logits after the output "
                "embeddings; its head cannot be fused"
            )


def usable_positions(model: PreTrainedModel) -> int:
    """The longest sequence, in tokens, that the model has positions for.

    RoBERTa and its kin count positions from `padding_idx + 1`, so two of XLM-R's 514 are never used.
    """
    limit = int(model.config.max_position_embeddings)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings
            if module.padding_idx is not None:
                limit -= module.padding_idx + 1
    return limit
