"""From a model in PyTorch to a graph that onnxruntime runs: traced by PyTorch's exporter, constants folded, fused."""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from comet.onnx_encoder import INPUTS, OUTPUT, extra, open_session, session_options
from comet.tap import usable_positions

_LARGEST = 2**31 - 2**24  # bytes of weights that one file holds, a protocol buffer
_BATCH, _LENGTH = 2, 16  # of the sample; neither is 1, which would be taken for a constant
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class _Logits(nn.Module):
    """A model of which nothing but the logits comes out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of sequences, or `[B, S, L]` of tokens."""
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def trace(model: PreTrainedModel, file: Path) -> None:
    """Write a model as an ONNX graph of any batch size and length.

    Args:
        model: with a head for a task, in evaluation mode, on the CPU.
        file: to write.

    Raises:
        ValueError: it is too large, or cannot be traced.
    """
    held = sum(one.numel() * 4 for one in model.parameters())
    if held > _LARGEST:
        raise ValueError(
            f"--model: {held / 1e9:.1f} GB of weights, and an ONNX file holds 2; trim the vocabulary "
            "(python -m comet.trim), or distil the model first"
        )
    ids = torch.full((_BATCH, min(_LENGTH, usable_positions(model))), 5)
    mask = torch.ones_like(ids)
    mask[-1, ids.shape[1] // 2 :] = 0
    with _quiet():
        try:
            program = torch.onnx.export(
                _Logits(model).eval(),
                (ids, mask),
                dynamo=True,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
                verbose=False,
            )
        except Exception as error:  # the exporter has many, and prints what led to them
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"--model: a {model.config.model_type} model cannot be exported: {reason}"
            ) from error
        assert program is not None
        program.save(str(file))


def finish(source: Path, target: Path, *, optimise: bool) -> dict[str, int]:
    """Fold a graph's constants and, to optimise, fuse attention and the like into one operation each.

    What is fused are operations of onnxruntime's own, the same for every processor. Weights that are in int8 already
    stay so: where attention would be fused first, with the products that lead to it, quantization would take it for an
    operation that knows no mask.

    Args:
        source: a graph, which is not kept as it was.
        target: to write.
        optimise: fuse too.

    Returns:
        What onnxscript's rewriter fused, and how often; what onnxruntime fuses it does not tell.
    """
    fused: dict[str, int] = {}
    if optimise:
        ir = extra("onnx_ir", "--optimize needs")
        fusions = extra("onnxscript.rewriter.ort_fusions", "--optimize needs")
        with _quiet():
            graph, counts = fusions.optimize_for_ort(ir.load(source))
            ir.save(graph, source)
        fused = {name: int(count) for name, count in counts.items() if count}
    fold(source, target, fuse=optimise)
    return fused


def fold(source: Path, target: Path, *, fuse: bool = False) -> None:
    """Let onnxruntime fold constants and, if asked, fuse what it knows; both files may be one.

    Raises:
        ValueError: onnxruntime does not take the graph.
    """
    levels = extra("onnxruntime", "--format onnx needs").GraphOptimizationLevel
    options = session_options(source, 1, "--format onnx")
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if fuse else levels.ORT_ENABLE_BASIC
    )
    options.optimized_model_filepath = str(target)
    open_session(source, options, "--format onnx")


def tidy(file: Path) -> dict[str, Any]:
    """Take out of a graph what the exporter noted on each operation, which can be a fifth of a small file.

    Returns:
        opset (version by domain) and operations (how often each is there).
    """
    onnx = extra("onnx", "--format onnx needs")
    model = onnx.load(file)
    graph = model.graph
    for one in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        one.ClearField("metadata_props")
        one.ClearField("doc_string")
    graph.ClearField("value_info")  # shapes on the way, which are inferred again
    onnx.save(model, file)
    return {
        "opset": {one.domain or "ai.onnx": one.version for one in model.opset_import},
        "operations": dict(sorted(Counter(one.op_type for one in graph.node).items())),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and rewriter tell at length what they do; what fails is raised."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
