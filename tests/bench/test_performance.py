"""The measured tables, and what they say of figures that are missing."""

from pathlib import Path

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


def test_sizes_of_a_sweep_stay_out_of_the_table_of_ops(made_up, tmp_path):
    ops = [made_up.op(), made_up.op(sizes={"N": 64, "V": 250_002})]
    lines = list(performance.ops_table([(tmp_path / "r.json", made_up.results(ops=ops))]))
    assert [line.split("|")[2].strip() for line in lines[2:-1]] == ["N=512 V=250002; float32, cpu"]


def test_every_direction_has_its_time_and_its_ratio(made_up, tmp_path):
    ops = [
        made_up.op(name, milliseconds * factor, direction=direction)
        for direction, milliseconds in (("both", 9), ("forward", 4), ("backward", 5))
        for name, factor in (("comet", 1), ("torch", 2))
    ]
    lines = list(performance.directions_table([(tmp_path / "r.json", made_up.results(ops=ops))]))
    assert len(lines) == 3
    assert [cell.strip() for cell in lines[2].split("|")[3:6]] == [
        "4 ms, 2.00x",
        "5 ms, 2.00x",
        "-",
    ]


def test_steps_stand_beside_the_plain_one(made_up, tmp_path):
    steps = [
        made_up.step("plain", 8, peak_bytes=8 << 30, parts={"teacher": 3.0, "optimizer": 0.5}),
        made_up.step("fused", 4, peak_bytes=4 << 30, parts={"teacher": 1.5, "optimizer": 0.25}),
        made_up.step("fused", 1, sizes={"batch": 1}),
        made_up.step("fused", 2, sizes={"length": 64}, parts={"teacher": 1.0}),
    ]
    found = [(tmp_path / "r.json", made_up.results(steps=steps))]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in performance.step_table(found)
    ]
    assert [row[1:6] for row in rows[2:-1]] == [
        ["8.00 s", "64", "1.00", "8.00 GiB", "1.00"],
        ["4.00 s", "128", "2.00", "4.00 GiB", "0.50"],
    ]
    parts = list(performance.parts_table(found))
    assert [cell.strip() for cell in parts[3].split("|")[2:9]] == [
        "1,500.0", "-", "-", "-", "-", "250.0", "-"
    ]  # fmt: skip
    growth = [
        [cell.strip() for cell in line.split("|")[1:6]] for line in performance.growth_table(found)
    ]
    assert [row[1:4] for row in growth[2:-1]] == [
        ["-", "128", "-"],
        ["-", "128", "-"],
        ["64", "128", "2.00"],
    ]


def test_without_results_the_frame_says_what_is_missing():
    for lines in performance.tables_of([], 1, performance.PAGE).values():
        assert "not measured yet" in lines[2]
        assert len({line.count("|") for line in lines}) == 1, "as many cells in every row"


def test_tables_go_between_the_marks_that_a_page_has(made_up, tmp_path):
    names = list(performance.tables_of([], 1, performance.PAGE))
    marks = "\n".join(f"<!-- measured {name} -->\nold\n<!-- end -->" for name in names)
    page, short = tmp_path / "page.md", tmp_path / "docs" / "short.md"
    page.write_text(f"before\n{marks}\nafter\n", encoding="utf-8")
    short.parent.mkdir()
    short.write_text("<!-- measured ops -->\nold\n<!-- end -->\n", encoding="utf-8")
    path = made_up.saved(
        tmp_path,
        ops=[made_up.op(), made_up.op(direction="forward")],
        steps=[made_up.step(parts={"teacher": 1.0})],
    )
    for _ in range(2):
        performance.main([str(path), "--write", str(page), str(short)])
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert text.count("(a-processor-abc123.json)") == 6
    assert short.read_text(encoding="utf-8").count("(../a-processor-abc123.json)") == 1


def test_a_page_without_marks_stays_as_it_is(made_up, tmp_path):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    path = made_up.saved(tmp_path, ops=[made_up.op()])
    good.write_text("<!-- measured ops -->\nold\n<!-- end -->\n", encoding="utf-8")
    for text, message in (
        ("nothing", "the page has none of <!-- measured ops -->"),
        ("<!-- measured ops -->", "no <!-- end --> follows"),
    ):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            performance.main([str(path), "--write", str(good), str(bad)])
        assert "old" in good.read_text(encoding="utf-8")


def test_the_pages_in_the_repository_have_every_mark():
    names = list(performance.tables_of([], 1, performance.PAGE))
    page = performance.PAGE.read_text(encoding="utf-8")
    assert [name for name in names if f"<!-- measured {name} -->" not in page] == []
    performance.written(page, {name: ["x"] for name in names})
    performance.written(
        Path("README.md").read_text(encoding="utf-8"), {"ops": ["x"], "step": ["x"]}
    )


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
