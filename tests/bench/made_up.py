"""Result files as `--save` writes them, with made-up figures."""

import json

COPY = 10.0
CEILINGS = {"copy_gigabytes_per_second": COPY, "float32_product_teraflops_per_second": 0.5}


def op(implementation="comet", milliseconds=10.0, **changes):
    seconds = milliseconds / 1e3
    return {
        "op": "softened_kl",
        "sizes": {"N": 512, "V": 250_002},
        "without": "",
        "direction": "both",
        "dtype": "float32",
        "device": "cpu",
        "implementation": implementation,
        "peer": implementation not in ("comet", "torch", "products"),
        "median_seconds": seconds,
        "seconds": [0.99 * seconds, seconds, 1.01 * seconds],
        "extra_bytes": 3 << 20,
        "error": 2e-7,
        "bytes": 10**7,
        "operations": 0,
        **changes,
    }


def step(variant="fused", seconds=5.0, parts=None, sizes=(), **changes):
    shapes = {"batch": 4, "length": 128, "vocabulary": 250_002, "layers": 24, **dict(sizes)}
    found = {
        "variant": variant,
        "sizes": shapes,
        "dtype": "float32",
        "device": "cpu",
        "median_seconds": seconds,
        "seconds": [0.99 * seconds, seconds, 1.01 * seconds],
        "tokens_per_second": shapes["batch"] * shapes["length"] / seconds,
        "peak_bytes": 4 << 30,
        **changes,
    }
    return found if parts is None else {**found, "parts": parts}


def results(ops=(), steps=(), **changes):
    found = {
        "machine": "A Processor",
        "commit": "abc123",
        "time": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.13.0"},
        "hardware": {"cpu": "A Processor", "threads": 2},
        "ceilings": {"cpu": CEILINGS},
        "ops": list(ops),
        "steps": list(steps),
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def saved(folder, name="a-processor-abc123", **given):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(results(**given)), encoding="utf-8")
    return path
