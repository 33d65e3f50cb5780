"""Weights in int8: embeddings with a scale for each row, products with a scale for each column of their weights.

A row r of the embeddings becomes round(127 r / max|r|), and max|r| / 127 beside it; what is looked up is multiplied by
its scale. Rows differ much in size, so that one scale for the whole table, onnxruntime's own way, would cost more.
Products are left to onnxruntime: weights in int8, and their inputs in uint8 with a scale found anew for each batch
(dynamic quantization, Jacob et al., 2018). The classifier itself, a few columns, stays in float32.

That one scale is for all numbers that a product reads. Where they differ most, after a nonlinearity and before the
classifier, eight bits can be too few: `spare` leaves those products in float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comet.onnx_encoder import OUTPUT, extra

SMALLEST = 4096  # numbers in a table that is worth it
_PRODUCTS = ("MatMul", "Gemm")
_CPU = Path("/proc/cpuinfo")
_NEEDS = "--int8 needs"


def quantise_embeddings(file: Path) -> int:
    """Put the large embeddings of a graph into int8, each row with its scale; returns how many tables those are."""
    onnx = extra("onnx", _NEEDS)
    make, arrays = onnx.helper.make_node, onnx.numpy_helper
    model = onnx.load(file)
    graph = model.graph
    tables = {
        one.name: one
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and int(np.prod(one.dims)) >= SMALLEST
    }
    nodes, done = [], {}
    for node in graph.node:
        name = node.input[0] if node.op_type == "Gather" else ""
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        if name not in tables or len(tables[name].dims) != 2 or axis != 0:
            nodes.append(node)
            continue
        done[name] = tables[name]
        out, ids = node.output[0], node.input[1]
        nodes += [
            make("Gather", [f"{name}_int8", ids], [f"{out}_int8"], name=f"{out}_rows"),
            make("Gather", [f"{name}_scale", ids], [f"{out}_scale"], name=f"{out}_scales"),
            make("Cast", [f"{out}_int8"], [f"{out}_whole"], name=f"{out}_cast", to=1),
            make("Mul", [f"{out}_whole", f"{out}_scale"], [out], name=f"{out}_scaled"),
        ]
    for name, table in done.items():
        if not any(name in node.input for node in nodes):
            graph.initializer.remove(table)  # nothing else reads it
        whole_VE, scale_V1 = by_row(arrays.to_array(table))
        graph.initializer.append(arrays.from_array(whole_VE, f"{name}_int8"))
        graph.initializer.append(arrays.from_array(scale_V1, f"{name}_scale"))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, file)
    return len(done)


def by_row(values_VE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table in int8 `[V, E]` and the scale of each row `[V, 1]` float32: their product is nearly the table."""
    scale_V1 = np.abs(values_VE).max(1, keepdims=True).astype(np.float32) / 127
    scale_V1[scale_V1 == 0] = 1  # a row of zeros
    return np.rint(values_VE / scale_V1).astype(np.int8), scale_V1


def quantise_products(file: Path, *, reduce_range: bool, spare: bool = False) -> dict[str, int]:
    """Put a graph's products with weights into int8, but the classifier's.

    Args:
        file: a graph whose constants are folded; is replaced.
        reduce_range: seven bits, with which no processor's 16-bit sums overflow.
        spare: leave the second product of feed-forward layers, and the one before the classifier, in float32.

    Returns:
        products (now in int8), products_in_float32, and reduce_range.
    """
    onnx = extra("onnx", _NEEDS)
    quantisation = extra("onnxruntime.quantization", _NEEDS)
    model = onnx.load(file)
    weights = {one.name: one for one in model.graph.initializer}
    products = []
    for number, node in enumerate(model.graph.node):
        if node.op_type in _PRODUCTS and node.input[1] in weights:
            node.name = node.name or f"product_{number}"
            products.append(node)
    # onnxruntime transposes weights but not their noted shapes, which older versions then refuse
    model.graph.ClearField("value_info")
    # said of it, so that onnxruntime does not advise to fold constants, which is done
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    onnx.save(model, file)
    last = _nearest(model.graph, products, [OUTPUT])
    kept = [last]
    if spare:
        kept += [node for node in products if _narrows(node, weights) and node not in kept]
        others = [node for node in products if node is not last]
        before = _nearest(model.graph, others, last.input)
        kept += [before] if before not in kept else []
    # a Gemm is called differently once it is rewritten
    names = [name for node in kept for name in (node.name, f"{node.name}_MatMul")]
    quantised = file.with_name(f"quantised-{file.name}")
    quantisation.quantize_dynamic(
        file,
        quantised,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=reduce_range,
        weight_type=quantisation.QuantType.QInt8,
        nodes_to_exclude=names,
    )
    quantised.replace(file)
    found = sum(one.op_type == "MatMulInteger" for one in onnx.load(file).graph.node)
    return {
        "products": found,
        "products_in_float32": len(products) - found,
        "reduce_range": reduce_range,
    }


def _nearest(graph: Any, products: Sequence[Any], names: Iterable[str]) -> Any:
    """The first of some products on the way back from what has these names: of the logits, the classifier."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting = list(names)
    while waiting:
        node = makers.get(waiting.pop(0))
        if node is None:
            continue
        if node in products:
            return node
        waiting += node.input
    raise ValueError("--int8: the logits come from no product with weights")


def _narrows(node: Any, weights: Mapping[str, Any]) -> bool:
    """Whether a product gives fewer numbers than it reads, as the second one of a feed-forward layer does."""
    read, given = weights[node.input[1]].dims
    if any(one.name == "transB" and one.i for one in node.attribute):
        read, given = given, read
    return bool(given < read)


def sums_overflow() -> bool:
    """Whether this processor adds products of eight bits in sixteen, as x86 does without VNNI."""
    try:
        flags = _CPU.read_text("ascii", errors="replace")
    except OSError:
        return False
    return "avx2" in flags and "vnni" not in flags
