"""What a change did, from two made-up files."""

import pytest

from bench import compare


def run(capsys, *arguments):
    code = 0
    try:
        compare.main([str(one) for one in arguments])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


def test_slower_and_faster_need_middle_halves_apart_and_five_percent(made_up):
    old = made_up.op()
    assert compare.verdict(old, made_up.op(milliseconds=12)) == "slower"
    assert compare.verdict(old, made_up.op(milliseconds=8)) == "faster"
    assert compare.verdict(old, made_up.op(milliseconds=10.4)) == "", "within 5 %"
    noisy = made_up.op(milliseconds=12, seconds=[0.008, 0.012, 0.020])
    assert compare.verdict(old, noisy) == "", "its first quartile is 10 ms"
    assert compare.verdict(old, made_up.op(milliseconds=30, seconds=[0.03])) == "?"


def test_table_has_times_noise_ratio_and_memory(made_up):
    old, new = (
        made_up.results([made_up.op(milliseconds=one, extra_bytes=memory << 20)])
        for one, memory in ((10, 3), (15, 5))
    )
    head, line = compare.table(old, new)
    assert head.startswith("case")
    for part in ("softened_kl N=512 V=250002", "10 ± 0.05 ms", "15 ± 0.075 ms", "1.50x  slower"):
        assert part in line
    assert line.endswith("3.0 MiB      5.0 MiB")


def test_cases_of_one_file_are_named(made_up, tmp_path, capsys):
    shared, gone = made_up.op(), made_up.op("torch")
    added = made_up.op(direction="no-grad")
    old = made_up.saved(tmp_path, "old", ops=[shared, gone])
    new = made_up.saved(tmp_path, "new", ops=[shared, added])
    _, out = run(capsys, old, new)
    assert "only in old: softened_kl N=512 V=250002 float32 cpu both torch" in out
    assert "only in new: softened_kl N=512 V=250002 float32 cpu no-grad comet" in out
    assert "1 cases in both: 0 slower, 0 faster" in out


def test_fail_above_ends_with_1_only_beyond_the_ratio(made_up, tmp_path, capsys):
    old = made_up.saved(tmp_path, "old", ops=[made_up.op()], steps=[made_up.step()])
    new = made_up.saved(tmp_path, "new", ops=[made_up.op()], steps=[made_up.step(seconds=6.0)])
    assert run(capsys, old, new)[0] == 0
    assert run(capsys, old, new, "--fail-above", "1.3")[0] == 0
    code, out = run(capsys, old, new, "--fail-above", "1.1")
    assert code == 1
    assert "failed: step" in out
    assert run(capsys, new, old, "--fail-above", "1.1")[0] == 0, "it got faster"


def test_other_machines_versions_threads_and_rates_are_said(made_up):
    old = made_up.results([made_up.op()])
    new = made_up.results(
        [made_up.op()],
        machine="Another",
        versions={"torch": "2.12.0"},
        hardware={"cpu": "Another", "threads": 1},
        ceilings={"cpu": {**made_up.CEILINGS, "copy_gigabytes_per_second": 5.0}},
    )
    assert list(compare.warnings(old, old)) == []
    said = "\n".join(compare.warnings(old, new))
    for part in ("machines differ", "threads differs: 2 and 1", "torch differs", "0.50 times"):
        assert part in said


def test_files_without_a_common_case_are_refused(made_up, tmp_path):
    old = made_up.saved(tmp_path, "old", ops=[made_up.op()])
    new = made_up.saved(tmp_path, "new", ops=[made_up.op(dtype="bfloat16")])
    with pytest.raises(ValueError, match="no case in common"):
        compare.main([str(old), str(new)])
    with pytest.raises(ValueError, match="--fail-above: got 0"):
        compare.main([str(old), str(new), "--fail-above", "0.5"])
