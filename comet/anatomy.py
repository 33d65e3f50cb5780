"""The parts of an encoder with a masked-language-model head, under one set of names for every architecture.

What is read or written here are the model's own parameters: a fused matrix is seen in slices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
SUPPORTED = (*BERT_LIKE, "modernbert")


@dataclass(frozen=True)
class Affine:
    """A matrix `[out, in]` and its bias `[out]`, or None."""

    weight: Tensor
    bias: Tensor | None

    def write(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Overwrite them; a bias that is not there must not be needed."""
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.zero_() if bias is None else self.bias.copy_(bias)


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward of one layer.

    Attributes:
        query, key, value: read the residual stream.
        output: writes what the heads give; its module's input is that of all heads.
        attention_norm: before attention (pre-LN; None where that is left out) or after it (post-LN).
        up: the matrices whose rows belong to a neuron of the feed-forward layer: one, or two where it is gated.
        down: writes what the neurons give.
        mlp_norm: before the feed-forward layer or after it, likewise.
        input_module: its input is what the queries read.
        output_module, down_module: their inputs are what the heads, and what the neurons give.
    """

    query: Affine
    key: Affine
    value: Affine
    output: Affine
    attention_norm: nn.LayerNorm | None
    up: tuple[Affine, ...]
    down: Affine
    mlp_norm: nn.LayerNorm
    input_module: nn.Module
    output_module: nn.Module
    down_module: nn.Module


@dataclass(frozen=True)
class Anatomy:
    """A whole model.

    Attributes:
        pre_norm: whether layers normalise what they read (ModernBERT) instead of the stream itself (BERT).
        tokens: `[V, E]`.
        positions: `[positions, E]` from the first that is used, None where positions are rotations.
        types: `[types, E]` or None.
        embedding_norm: after their sum.
        project: from E to the hidden size, None where they are the same.
        layers: in order.
        final_norm: after the last layer (pre-LN), else None.
        head: the dense layer of the masked-language-model head.
        head_module: its input is what the head reads.
        head_norm: before the output embeddings.
        output_module: the output embeddings; the last to be called.
        bias: `[V]`, of the output embeddings, or None.
        heads: of attention.
        frequencies: `[D / 2]` of the rotation of each layer's queries and keys, by position; None without one.
    """

    pre_norm: bool
    tokens: Tensor
    positions: Tensor | None
    types: Tensor | None
    embedding_norm: nn.LayerNorm
    project: Affine | None
    layers: tuple[Layer, ...]
    final_norm: nn.LayerNorm | None
    head: Affine
    head_module: nn.Module
    head_norm: nn.LayerNorm
    output_module: nn.Module
    bias: Tensor | None
    heads: int
    frequencies: tuple[Tensor, ...] | None

    @property
    def width(self) -> int:
        """The hidden size."""
        return self.layers[0].query.weight.shape[1]


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The parts of a model.

    Raises:
        ValueError: its architecture is not known here.
    """
    kind = model.config.model_type
    if kind not in SUPPORTED or model.get_output_embeddings() is None:
        raise ValueError(
            f"student.initial: weights of a {kind} model cannot be reduced; the teacher may be "
            f"{', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}, or take student.initial random"
        )
    return _modernbert(model) if kind == "modernbert" else _bert_like(model)


def _affine(linear: nn.Linear, rows: slice = slice(None)) -> Affine:
    bias = None if linear.bias is None else linear.bias.data[rows]
    return Affine(linear.weight.data[rows], bias)


def _bert_like(model: Any) -> Anatomy:
    base = getattr(model, model.base_model_prefix)
    embeddings = base.embeddings
    head_dense, head_norm = _HEADS[model.config.model_type](model)
    first = embeddings.position_embeddings.padding_idx
    project = getattr(base, "embeddings_project", None)
    output = model.get_output_embeddings()
    return Anatomy(
        pre_norm=False,
        tokens=embeddings.word_embeddings.weight.data,
        positions=embeddings.position_embeddings.weight.data[0 if first is None else first + 1 :],
        types=embeddings.token_type_embeddings.weight.data,
        embedding_norm=embeddings.LayerNorm,
        project=None if project is None else _affine(project),
        layers=tuple(_bert_layer(layer) for layer in base.encoder.layer),
        final_norm=None,
        head=_affine(head_dense),
        head_module=head_dense,
        head_norm=head_norm,
        output_module=output,
        bias=None if output.bias is None else output.bias.data,
        heads=model.config.num_attention_heads,
        frequencies=None,
    )


_HEADS: dict[str, Callable[[Any], tuple[nn.Linear, nn.LayerNorm]]] = {
    "bert": lambda model: (
        model.cls.predictions.transform.dense,
        model.cls.predictions.transform.LayerNorm,
    ),
    "electra": lambda model: (
        model.generator_predictions.dense,
        model.generator_predictions.LayerNorm,
    ),
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert"),
        lambda model: (model.lm_head.dense, model.lm_head.layer_norm),
    ),
}


def _bert_layer(layer: Any) -> Layer:
    own = layer.attention.self
    return Layer(
        query=_affine(own.query),
        key=_affine(own.key),
        value=_affine(own.value),
        output=_affine(layer.attention.output.dense),
        attention_norm=layer.attention.output.LayerNorm,
        up=(_affine(layer.intermediate.dense),),
        down=_affine(layer.output.dense),
        mlp_norm=layer.output.LayerNorm,
        input_module=own.query,
        output_module=layer.attention.output.dense,
        down_module=layer.output.dense,
    )


def _modernbert(model: Any) -> Anatomy:
    base = model.model
    return Anatomy(
        pre_norm=True,
        tokens=base.embeddings.tok_embeddings.weight.data,
        positions=None,
        types=None,
        embedding_norm=base.embeddings.norm,
        project=None,
        layers=tuple(_modernbert_layer(layer) for layer in base.layers),
        final_norm=base.final_norm,
        head=_affine(model.head.dense),
        head_module=model.head.dense,
        head_norm=model.head.norm,
        output_module=model.decoder,
        bias=None if model.decoder.bias is None else model.decoder.bias.data,
        heads=model.config.num_attention_heads,
        frequencies=tuple(
            getattr(base.rotary_emb, f"{kind}_inv_freq").double()
            for kind in model.config.layer_types
        ),
    )


def _modernbert_layer(layer: Any) -> Layer:
    three, gated = layer.attn.Wqkv, layer.mlp.Wi
    inner, neurons = three.out_features // 3, gated.out_features // 2
    query, key, value = (_affine(three, slice(n * inner, (n + 1) * inner)) for n in range(3))
    return Layer(
        query=query,
        key=key,
        value=value,
        output=_affine(layer.attn.Wo),
        attention_norm=layer.attn_norm if isinstance(layer.attn_norm, nn.LayerNorm) else None,
        up=(_affine(gated, slice(neurons)), _affine(gated, slice(neurons, None))),
        down=_affine(layer.mlp.Wo),
        mlp_norm=layer.mlp_norm,
        input_module=three,
        output_module=layer.attn.Wo,
        down_module=layer.mlp.Wo,
    )
