"""Figures from made-up results, and what is refused."""

from xml.etree import ElementTree

import pytest

from bench import plot, reading


@pytest.fixture
def swept(made_up):
    """V varied by two implementations, and a case of another size."""
    return [
        *(
            made_up.op(name, milliseconds=factor * size / 1e4, sizes={"N": 64, "V": size})
            for name, factor in (("comet", 1), ("torch", 4))
            for size in (128_000, 32_000, 64_000)
        ),
        made_up.op(sizes={"N": 512, "V": 250_002}),
        made_up.op(sizes={"N": 64, "V": 16_000}, direction="forward"),
    ]


def test_a_sweep_is_records_that_differ_in_one_size(swept):
    (sweep,) = reading.op_sweeps(swept)
    assert (sweep.what, sweep.size, sweep.fixed) == ("softened_kl", "V", "N=64")
    assert {name: [one["sizes"]["V"] for one in line] for name, line in sweep.lines.items()} == {
        name: [32_000, 64_000, 128_000] for name in ("comet", "torch")
    }


def test_the_floor_is_the_longer_of_bytes_and_operations(made_up):
    ceilings = {"cpu": made_up.CEILINGS}
    assert reading.floor_seconds(made_up.op(), ceilings) == pytest.approx(1e-3)
    busy = made_up.op(operations=10**10)
    assert reading.floor_seconds(busy, ceilings) == pytest.approx(0.02)
    assert reading.floor_seconds(made_up.op(operations=1, dtype="bfloat16"), ceilings) is None
    assert reading.floor_seconds(made_up.op(), {}) is None


def test_every_figure_in_both_kinds_and_themes(made_up, swept, tmp_path):
    parts = {"teacher": 2.0, "student": 1.5, "optimizer": 0.5}
    steps = [
        made_up.step(variant, seconds * batch, parts, {"batch": batch})
        for variant, seconds in (("plain", 2.0), ("fused", 1.0))
        for batch in (1, 2, 4)
    ]
    path = made_up.saved(tmp_path, ops=swept, steps=steps)
    plot.main([str(path), "--output", str(tmp_path / "figures")])
    names = ("softened_kl-V", "step-growth", "step-parts")
    expected = {
        f"a-processor-{name}-cpu-float32-{theme}.{kind}"
        for name in names
        for theme in ("light", "dark")
        for kind in ("png", "svg")
    }
    assert {one.name for one in (tmp_path / "figures").iterdir()} == expected
    texts = {}
    for theme in ("light", "dark"):
        file = tmp_path / "figures" / f"a-processor-softened_kl-V-cpu-float32-{theme}.svg"
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        texts[theme] = {one.text for one in root.iter() if one.text and one.text.strip()}
        assert ("#1b1e23" in file.read_text(encoding="utf-8")) == (theme == "dark")
    assert {"comet", "torch", "time, ms", "extra memory, MiB"} <= texts["light"] == texts["dark"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[]", "neither ops nor steps"),
        ('{"ops": []}', "neither ops nor steps"),
        ('{"ops": [{}]}', "has no machine"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "wrong.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as refused:
        plot.main([str(path)])
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_records_that_lack_a_field_are_refused(made_up, tmp_path):
    record = made_up.op()
    del record["direction"]
    with pytest.raises(ValueError, match=r"ops\[0\] has no direction"):
        reading.read(made_up.saved(tmp_path, ops=[record]))
    with pytest.raises(ValueError, match="median_seconds is 0"):
        reading.read(made_up.saved(tmp_path, ops=[made_up.op(milliseconds=0)]))


def test_nothing_to_draw_and_two_files_of_a_machine_are_said(made_up, tmp_path):
    path = made_up.saved(tmp_path, ops=[made_up.op()])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.main([str(path), "--output", str(tmp_path / "none")])
    path = made_up.saved(
        tmp_path, ops=[made_up.op(sizes={"N": n, "V": 250_002}) for n in (64, 128, 512)]
    )
    with pytest.raises(ValueError, match="has the same of this machine"):
        plot.main([str(path), str(path), "--output", str(tmp_path / "twice")])


def test_a_commit_finds_its_file(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="no results"):
        reading.newest()
    first = made_up.saved(tmp_path, "a-processor-abc123", ops=[made_up.op()])
    later = made_up.saved(tmp_path, "a-processor-abd456", ops=[made_up.op()], time="2027")
    assert reading.find("abc") == first
    (found,) = reading.newest()
    assert found == (later, reading.read(later))
    steps = made_up.saved(tmp_path, "a-processor-abe789", steps=[made_up.step()], time="2028")
    both = {path: (len(found["ops"]), len(found["steps"])) for path, found in reading.newest()}
    assert both == {later: (1, 0), steps: (0, 1)}, "each section of the last file that has it"
    for name, said in (("ab", "several files"), ("fff", "no file of"), (str(tmp_path), "expected")):
        with pytest.raises(ValueError, match=said):
            reading.find(name)
