"""The measured tables, and what they say of figures that are missing."""

import pytest

from bench import kernel_times, performance


def test_cost_is_tokens_over_rate(made_up, tmp_path):
    fused, plain = made_up.step(seconds=5.12), made_up.step("plain", 10.24)
    swept = made_up.step(seconds=0.1, sizes={"vocabulary": 1000})
    lines = performance.cost_table(
        [(tmp_path / "r.json", made_up.results(steps=[fused, plain, swept]))], 360_000
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in list(lines)[2:]]
    assert [row[:4] for row in rows[:2]] == [
        ["fused, 4 × 128; float32, cpu", "100", "1", "2.78e+03"],
        ["plain, 4 × 128; float32, cpu", "50", "2", "5.56e+03"],
    ]
    assert rows[0][4:6] == ["-", "-"], "eight GPUs, of a CPU's rate"
    assert rows[2][0].startswith("on a GPU: missing until")
    assert len(rows) == 3


def test_eight_gpus_send_gradients(made_up, tmp_path):
    step = made_up.step(seconds=0.1, device="cuda", sizes={"batch": 32})
    found = list(
        performance.cost_table([(tmp_path / "r.json", made_up.results(steps=[step]))], 10**9)
    )
    hours, _, eight, spent = (float(cell) for cell in found[2].split("|")[3:7])
    assert hours / 8 < eight < hours / 8 * 1.02
    assert spent == pytest.approx(8 * eight, rel=0.01)
    assert not any("missing" in line for line in found)
    plain = {**step, "variant": "plain"}
    assert performance.sending_seconds(plain) > 4 * performance.sending_seconds(step)


def test_ops_have_ratios_floor_and_a_link(made_up, tmp_path):
    ops = [
        *(made_up.op(name, time) for name, time in (("comet", 2), ("torch", 8))),
        *(made_up.op(name, time) for name, time in (("liger-kl-div", 6), ("torch.compile", 5))),
        made_up.op("comet", 1, direction="forward"),
    ]
    page = tmp_path / "docs" / "page.md"
    file = tmp_path / "results" / "r.json"
    lines = list(performance.ops_table([(file, made_up.results(ops=ops))], page))
    assert lines[2] == (
        "| `softened_kl` | N=512 V=250002; float32, cpu | 2 ms | 4.00x | 2.50x (torch.compile) | 50% "
        "| 3 → 3 MiB | [r](../results/r.json) |"
    )
    assert len(lines) == 4


def test_without_results_the_frame_says_what_is_missing():
    for lines in (
        performance.ops_table([]),
        performance.steps_table([]),
        performance.cost_table([], 1),
    ):
        rows = list(lines)
        assert "not measured yet" in rows[2]
        assert len({row.count("|") for row in rows}) == 1, "as many cells in every row"


def test_tables_go_between_their_marks(made_up, tmp_path):
    page = tmp_path / "page.md"
    marks = "\n".join(
        f"<!-- measured {name} -->\nold\n<!-- end -->" for name in ("ops", "steps", "cost")
    )
    page.write_text(f"before\n{marks}\nafter\n", encoding="utf-8")
    path = made_up.saved(tmp_path, ops=[made_up.op()], steps=[made_up.step()])
    for _ in range(2):
        performance.main([str(path), "--write", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert text.count("(a-processor-abc123.json)") == 3
    with pytest.raises(ValueError, match="the page has no <!-- measured ops -->"):
        performance.written("", {"ops": []})


def test_the_page_in_the_repository_has_every_mark():
    tables = {name: ["x"] for name in ("ops", "steps", "cost")}
    performance.written(performance.PAGE.read_text(encoding="utf-8"), tables)


def test_kernel_times_add_up():
    name = "mean_attention"
    module = __import__(kernel_times.modules()[name], fromlist=["OP"])
    kernels = kernel_times.measure(module.OP, module.QUICK, "comet", calls=1)
    assert kernels
    assert all(one.seconds > 0 for one in kernels)
    assert [one.seconds for one in kernels] == sorted(
        (one.seconds for one in kernels), reverse=True
    )
    lines = list(kernel_times.table(module.OP, module.QUICK, kernels))
    assert lines[0].startswith("mean_attention B2-H4")
    assert "GB/s" in lines[-1]
    assert "TFLOP/s" in lines[-1]


def test_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match=r"expected one of .*factorized_projection"):
        kernel_times.main(["softmax", "--device", "cpu", "--quick"])
