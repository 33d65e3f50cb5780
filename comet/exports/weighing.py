"""What a model takes on disk, part by part."""

import json
from pathlib import Path

from comet.onnx_encoder import GRAPH, extra

_TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges")
REPORT = "export.json"


def weigh(folder: Path) -> dict[str, int]:
    """Bytes of a saved or exported model.

    Returns:
        embeddings, weights (all others), graph (what is no weight in an ONNX file), tokenizer, rest, and total.
    """
    sizes = {
        path.name: path.stat().st_size
        for path in folder.iterdir()
        if path.is_file() and path.name != REPORT
    }
    tensors: dict[str, int] = {}
    for name in sizes:
        if name.endswith(".safetensors"):
            tensors |= _in_safetensors(folder / name)
        elif name == GRAPH:
            tensors |= _in_graph(folder / name)
    found = {
        "embeddings": sum(size for name, size in tensors.items() if "embedding" in name),
        "weights": sum(size for name, size in tensors.items() if "embedding" not in name),
        "graph": 0,
        "tokenizer": sum(size for name, size in sizes.items() if name.startswith(_TOKENIZER)),
    }
    if GRAPH in sizes:
        found["graph"] = sizes[GRAPH] - sum(tensors.values())
    total = sum(sizes.values())
    return {**found, "rest": total - sum(found.values()), "total": total}


def _in_safetensors(file: Path) -> dict[str, int]:
    """Bytes of each tensor, read off the header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    places = {name: one["data_offsets"] for name, one in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in places.items()}


def _in_graph(file: Path) -> dict[str, int]:
    """Bytes of each tensor that a graph holds."""
    onnx = extra("onnx", "--format onnx needs")
    graph = onnx.load(file).graph
    return {one.name: onnx.numpy_helper.to_array(one).nbytes for one in graph.initializer}
