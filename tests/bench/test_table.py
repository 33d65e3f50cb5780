"""The table of a benchmark run."""

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
        "dtype": "float32",
        "device": "cpu",
        "implementation": implementation,
        "median_seconds": seconds,
        "extra_bytes": 3 << 20,
        "error": 2e-7,
        "bytes": 10**7,
        "operations": 0,
        **changes,
    }


def cells(line):
    return [cell for cell in line.split("  ") if cell]


def test_a_case_is_named_once_and_compared_with_comet():
    lines = table([record("torch", 0.004), record("comet", 0.002)], CEILINGS)
    assert [cell.strip() for cell in cells(lines[1])] == [
        *("softened_kl", "N=4 V=9", "float32", "cpu", "torch", "4 ms", "2.00x"),
        *("3.0 MiB", "2e-07", "2.5 (25%)", "-"),
    ]
    assert lines[2].split()[:4] == ["comet", "2", "ms", "1.00x"]


def test_cases_that_leave_something_out_stand_apart():
    records = [record("comet", 0.002), record("torch", 0.001, without="backward")]
    lines = table(records, CEILINGS)
    assert "N=4 V=9, no backward" in lines[2]
    assert "  -  " in lines[2], "compared with a time that has a backward"


def test_what_is_not_known_is_a_dash():
    line = table([record("comet", 2.0, extra_bytes=None, error=None, operations=10**12)], {})[1]
    assert line.split()[-5:] == ["1.00x", "-", "-", "0.005", "0.5"]


def test_the_legend_says_what_shares_are_of():
    assert legend(CEILINGS)[-1].strip() == (
        "what cpu reached in this run: copies 10 GB/s; matrix products 0.5 TFLOP/s in float32"
    )
