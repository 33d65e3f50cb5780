"""The command line of the whole step: what a sweep visits, what it leaves out, what it prints."""

from dataclasses import replace

import pytest

from bench import bench_step
from bench.bench_step import by_part, growth, parse, run, run_all, sweep_of, why_not
from bench.steps import TINY, VARIANTS
from comet import frozen
from comet_kernels.ops.softened_kl import linear_pieces


def record(variant, seconds, **sizes):
    return {
        "variant": variant,
        "sizes": {"batch": 2, "length": 64, "vocabulary": 250_002, **sizes},
        "median_seconds": seconds,
        "tokens_per_second": 128 / seconds,
        "peak_bytes": 3 << 30,
        "parts": {"teacher": 0.5 * seconds, "student": 0.25 * seconds},
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_sweep_changes_one_size_at_a_time(device):
    points = [vars(one) for one in sweep_of(parse(["--sweep", "--device", device]))]
    base, _ = bench_step.SWEEP[device]
    changed = [[size for size in base if point[size] != base[size]] for point in points]
    assert changed[0] == []
    assert all(len(sizes) == 1 for sizes in changed[1:])
    assert {size for sizes in changed for size in sizes} == {"batch", "length", "vocabulary"}
    assert len({tuple(point[size] for size in base) for point in points}) == len(points)


def test_a_projection_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(bench_step, "run_in_child", lambda variant, point: record(variant, 1.0))
    point = parse(["--length", "1024", "--device", "cpu"])
    records, left_out = run_all(("plain", "fused"), [point])
    assert [one["variant"] for one in records] == ["fused"]
    assert left_out[0].startswith("plain at 1024 tokens: its dense projection takes 16,384 GiB")
    assert why_not("plain", parse(["--length", "32", "--device", "cpu"])) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_as_on_a_device_with_instructions_for_it(variant, monkeypatch):
    for module in (frozen, linear_pieces):
        monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: True)
    found = run(variant, replace(TINY, precision="bfloat16"), steps=1)
    assert found["dtype"] == "bfloat16"
    assert found["median_seconds"] > 0


def test_a_child_that_fails_is_left_out_by_name(monkeypatch):
    monkeypatch.setattr(bench_step, "run_in_child", lambda variant, point: None)
    records, left_out = run_all(("fused",), [parse(["--device", "cpu", "--batch", "3"])])
    assert records == []
    assert left_out == [
        "fused at batch 3, length 128, vocabulary 250,002: it failed, as said above"
    ]


def test_tables():
    records = [record("plain", 2.0), record("fused", 1.0, batch=4)]
    records[1]["parts"]["optimizer"] = 0.001
    assert growth(records)[2].split() == [
        "4",
        "64",
        "250,002",
        "fused",
        "1.000",
        "128",
        "3.00",
        "GiB",
    ]
    assert [line.split() for line in by_part(records)] == [
        ["ms", "of", "plain", "fused"],
        ["teacher", "1,000.0", "500.0"],
        ["student", "500.0", "250.0"],
        ["optimizer", "-", "1.0"],
    ]
