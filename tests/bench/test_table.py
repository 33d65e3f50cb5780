"""The table of a benchmark run."""

import pytest

from bench.table import legend, table

CEILINGS = {
    "cpu": {
        "copy_gigabytes_per_second": 10.0,
        "float32_product_teraflops_per_second": 0.5,
    }
}


def record(implementation, seconds, **changes):
    return {
        "op": "softened_kl",
        "sizes": {"N": 4, "V": 9},
        "without": "",
        "direction": "both",
        "dtype": "float32",
        "device": "cpu",
        "implementation": implementation,
        "peer": False,
        "median_seconds": seconds,
        "extra_bytes": 3 << 20,
        "error": 2e-7,
        "bytes": 10**7,
        "operations": 0,
        **changes,
    }


def cells(line):
    return [cell for cell in line.split("  ") if cell]


def test_a_case_is_named_once_and_compared_with_torch_and_the_best_peer():
    others = [record(name, time, peer=True) for name, time in (("slow", 0.006), ("fast", 0.003))]
    lines = table([record("comet", 0.002), record("torch", 0.004), *others], CEILINGS)
    assert [cell.strip() for cell in cells(lines[1])] == [
        *("softened_kl", "N=4 V=9", "float32", "cpu", "both", "comet", "2 ms", "2.00x", "1.50x"),
        *("3.0 MiB", "2e-07", "5 (50%)", "-"),
    ]
    assert lines[2].split()[:5] == ["torch", "4", "ms", "1.00x", "0.75x"]
    assert lines[3].split()[:5] == ["slow", "6", "ms", "0.67x", "0.50x"]


def test_a_floor_is_no_peer():
    lines = table([record("comet", 0.002), record("products", 0.001, error=None)], CEILINGS)
    assert lines[1].split()[9:11] == ["-", "-"]


@pytest.mark.parametrize("change", [{"direction": "no-grad"}, {"without": "bias"}])
def test_other_cases_stand_apart(change):
    lines = table([record("comet", 0.002), record("torch", 0.001, **change)], CEILINGS)
    assert "2 ms  -" in lines[1], "compared with the time of another case"
    assert "softened_kl" in lines[2]
    assert ("no-grad" if "direction" in change else "N=4 V=9, no bias") in lines[2]


def test_what_is_not_known_is_a_dash():
    line = table([record("comet", 2.0, extra_bytes=None, error=None, operations=10**12)], {})[1]
    assert line.split()[-6:] == ["-", "-", "-", "-", "0.005", "0.5"]


def test_the_legend_says_what_shares_are_of():
    assert legend(CEILINGS)[-1].strip() == (
        "what cpu reached in this run: copies 10 GB/s; matrix products 0.5 TFLOP/s in float32"
    )
