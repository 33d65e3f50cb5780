"""The page: what it says, what it refuses, and how it looks to a real browser."""

import base64
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib", reason="charts need the extra `report`")
pytest.importorskip("jinja2", reason="the page needs the extra `report`")

from report_runs import ACCURACY, adapted, distilled, experiment, tuned, write_json

from comet.report.__main__ import main
from comet.report.charts import Bar, Point, frontier
from comet.report.curves import thinned
from comet.report.drawing import apart
from comet.report.figures import read_published
from comet.report.maps import attention_maps
from comet.report.reading import read
from comet.report.words import taken

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Text, links and ids of a page; refuses elements that are closed in another order than opened."""

    VOID = ("meta", "br", "link", "input", "img", "path", "use", "rect")

    def __init__(self, source):
        super().__init__()
        self.words, self.loaded, self.ids, self.tags, self._open = [], [], [], [], []
        self.feed(source)
        assert not self._open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        loads = [given.get("src"), given.get("xlink:href")]
        if tag not in ("a",):
            loads.append(given.get("href"))
        self.loaded += [value for value in loads if value]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)


def report(*folders, output, options=("--no-measure",)):
    main([*map(str, folders), "--output", str(output), *options])
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A student, its twin and its teacher fine-tuned; a distillation; a teacher's training."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("full", "mlm", "teacher"):
        tuned(folder / name, name, ACCURACY[name], luck=7 if name == "teacher" else 0)
    distilled(folder / "student")
    adapted(folder / "afro")
    return [folder / name for name in ("full", "mlm", "teacher", "student", "afro")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return report(*runs, output=tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_says_what_the_scores_say(runs, page):
    text = Page(page).text
    content = json.loads((runs[0] / "scores-test.json").read_text())
    mean = content["mean"]["weighted_f1"]
    assert (
        f"full reaches {100 * mean['mean']:.1f} points of F1 weighted by class size on AfriSenti test"
        in text
    )
    assert f"95 % interval {100 * mean['low']:.1f} to {100 * mean['high']:.1f}" in text
    assert f"it keeps {100 * content['retention']['raw']['mean']:.1f} % of the F1" in text
    gap = 100 * (mean["mean"] - content["floor"]["mean"]["mean"])
    assert f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} the TF-IDF floor" in text
    for language, found in content["languages"].items():
        assert f"{100 * found['weighted_f1']['mean']:.1f}" in text, language
    assert "AfroXLMR-Comet, 69 M" in text
    assert "not measured here" in text


def test_nothing_is_loaded_from_elsewhere(page):
    found = Page(page)
    assert all(link.startswith(("#", "data:")) for link in found.loaded)
    assert "http" not in re.sub(
        r"<a [^>]*href=\"https://arxiv.org/[^\"]*\"", "", re.sub(r"base64,[^\"]*", "", page)
    )
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not {"script", "link", "iframe", "img"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    targets = re.findall(r"(?:href=\"|url\()#([\w-]+)", page)
    assert set(targets) <= set(found.ids)


def test_colours_are_the_pages_own(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert "var(--accent)" in drawn
    assert "#c0de" not in page
    assert not re.search(r"(fill|stroke): #", drawn)
    used = set(re.findall(r"var\((--[\w-]+)\)", page)) - {"--share"}
    assert used <= set(re.findall(r"(--[\w-]+):", page))


def test_missing_parts_are_named(runs, tmp_path):
    text = Page(report(runs[3], output=tmp_path / "r.html")).text
    assert "No scores on a task" in text
    assert "student: no attention maps, as it has no student yet" in text
    text = Page(report(runs[0], output=tmp_path / "r.html")).text
    assert "The teacher teacher has no scores among these folders" in text
    assert "No distillation run is among these folders" in text


def test_a_name_is_text_wherever_it_stands(tmp_path):
    name = "<script>alert(1)</script> $x_$ $\\q{ &amp;"
    tuned(tmp_path / "run", name, 0.7)
    page = report(
        tmp_path / "run", output=tmp_path / "r.html", options=["--no-measure", "--title", "<b>x"]
    )
    assert "script" not in Page(page).tags
    assert "<b>x" not in page
    assert name in Page(page).text


def test_every_label_is_drawn(tmp_path):
    for number, name in enumerate(("$x_$", "_hidden", "a\x00b", "\ud800", "$", "%", "^_{", "x\ny")):
        tuned(tmp_path / f"run-{number}", name, 0.7)
    page = report(*tmp_path.glob("run-*"), output=tmp_path / "r.html", options=["--no-measure"])
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    for name in ("$x_$", "_hidden", "a�b", "�", "$", "%", "^_{"):
        assert name in drawn


@pytest.mark.slow
def test_thirty_cells_fit_one_page(tmp_path):
    cells = {f"cell {number}": "distilled" for number in range(29)}
    experiment(tmp_path / "grid", {**cells, "last": "distilled"}, "Thirty <i>")
    page = report(
        tmp_path / "grid", output=tmp_path / "r.html", options=["--no-measure", "--maps", "1"]
    )
    text = Page(page).text
    assert "Difference to cell 0, in points" in text
    assert "languages stand in the table alone" in text
    assert "Cell last is not done but failed: out of memory" in text
    assert "its curves are not drawn, only those of 24 runs" in text
    assert len(page) < 4e6


def test_raw_numbers_are_those_of_the_files(runs, page):
    link = re.search(r'download="report.json" href="data:application/json;base64,([^"]*)"', page)[1]
    content = json.loads(base64.b64decode(link))
    assert content["full/scores-test.json"] == json.loads(
        (runs[0] / "scores-test.json").read_text()
    )
    assert "student/agreement.json" in content


def test_attention_maps_are_of_both_models(teacher_folder, tmp_path):
    run = distilled(tmp_path / "run", languages=("hau", "pcm"), teacher=str(teacher_folder))
    shutil.copytree(teacher_folder, run / "student")
    maps = attention_maps(read([run]).runs[0], ["hau", "pcm"], {})
    assert maps.missing == ["pcm"]
    pair = maps.pairs[0]
    assert pair.error == 0
    assert pair.teacher == pair.student
    assert [sum(row) for row in pair.teacher] == pytest.approx([1.0] * len(pair.tokens), abs=1e-5)
    text = Page(report(run, output=tmp_path / "r.html")).text
    assert "teacher layer 4 of 4, student layer 4 of 4" in text
    assert "no attention map of pcm" in text


def test_dev_scores_have_no_published_figures_beside_them(tmp_path):
    tuned(tmp_path / "run", "run", 0.7, split="dev")
    text = Page(report(tmp_path / "run", output=tmp_path / "r.html")).text
    assert "AfroXLMR-Comet" not in text
    assert "those on dev are shown" in text
    assert "are not set beside dev" in text


def test_texts_that_a_system_has_seen_are_told(tmp_path):
    folder = tuned(tmp_path / "run", "run", 0.7)
    content = json.loads((folder / "scores-test.json").read_text())
    for name, rest in (("hau", {"weighted_f1": {"mean": 0.4321}}), ("swa", None)):
        content["languages"][name]["overlap"] = {"train": 7, "any": 9, "without": rest}
    (folder / "scores-test.json").write_text(json.dumps(content))
    text = Page(report(folder, output=tmp_path / "r.html")).text
    said = "run: some of its test texts stand in train or dev too: "
    assert f"{said}hau 9 of 90 (43.2 without) and swa 9 of 90 (no other)." in text


def test_published_figures_are_consistent():
    for task in read_published().values():
        assert task["link"].startswith("https://")
        for system in task["systems"]:
            mean = sum(system["languages"].values()) / len(system["languages"])
            assert system["mean"] == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", "does not exist"),
        (lambda folder: write(folder / "file", "x"), "is a file; give its folder"),
        (lambda folder: write(folder / "empty" / "x", "").parent, "holds no run"),
        (lambda folder: tuned(folder / "in" / "run", "a", 0.7).parent, "did you mean"),
        (lambda folder: write(folder / "half" / "scores-test.json", '{"schema": 1, "sys').parent, "is not whole JSON"),
        (lambda folder: write(folder / "old" / "scores-test.json", '{"schema": 9}').parent, "schema 9, expected 1"),
        (lambda folder: write(folder / "none" / "scores-test.json", '{"schema": 1}').parent, "has no task"),
        (lambda folder: write(folder / "grid" / "experiment.json", "[]").parent, "holds no JSON object"),
        (lambda folder: without(distilled(folder / "new"), "metrics.jsonl", "evaluation.jsonl"), "nothing to report"),
        (lambda folder: write(distilled(folder / "bad") / "metrics.jsonl", '{"st\n{}\n').parent, "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_said_in_one_line(make, said, tmp_path):
    output = write(tmp_path / "report.html", "the old one")
    with pytest.raises(ValueError, match=said) as caught:
        report(make(tmp_path), output=output)
    assert "\n" not in str(caught.value)
    assert output.read_text() == "the old one"


def test_sentences_in_another_encoding_are_refused(runs, tmp_path):
    (tmp_path / "s.tsv").write_bytes("hau\tcaf\u00e9\n".encode("latin-1"))
    options = ["--sentences", str(tmp_path / "s.tsv")]
    with pytest.raises(
        ValueError, match=r"--sentences: .*s\.tsv is not in UTF-8; convert it: iconv"
    ):
        report(runs[0], output=tmp_path / "r.html", options=options)


def test_a_report_is_replaced_only_when_whole(runs, tmp_path, monkeypatch):
    output = write(tmp_path / "report.html", "the old one")

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match=r"cannot write .*report.html: No space left"):
        main([str(runs[4]), "--output", str(output), "--no-measure"])
    assert output.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_line_that_is_being_written_is_left_out_and_said(tmp_path):
    run = distilled(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    write_json(run / "run.json", {"state": "running"})
    text = Page(report(run, output=tmp_path / "r.html")).text
    assert "the last line of metrics.jsonl is not whole yet" in text
    assert "run is not done but running" in text


def test_labels_are_moved_apart_and_keep_their_order():
    moved = apart([10.0, 11.0, 30.0, 10.5], 5.0, 0.0)
    assert sorted(range(4), key=moved.__getitem__) == [0, 3, 1, 2]
    ordered = sorted(moved)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 5 - 1e-9
    assert min(apart([0.0, 0.1], 8.0, 0.0)) >= 0


def test_the_frontier_is_what_nothing_beats():
    points = [Point(Bar(name, worth), cost) for name, worth, cost in
              [("small", 60, 1), ("dear", 59, 2), ("same", 70, 8), ("best", 70, 4), ("large", 71, 9)]]  # fmt: skip
    assert [point.bar.label for point in frontier(points)] == ["small", "best", "large"]


def test_long_curves_are_averaged():
    steps, values, width = thinned(range(1, 1001), [float(at) for at in range(1, 1001)], 100)
    assert (len(steps), width, steps[0], steps[-1], values[0]) == (100, 10, 10, 1000, 5.5)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_phone_shows_all_without_scrolling_sideways(page, tmp_path):
    """The page in a frame as wide as a small phone: what is wider scrolls inside its own box."""
    frame = (
        f'<!doctype html><body><iframe id="f" style="width:360px;height:800px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe><script>onload = () => { const d = f.contentDocument, w = d.documentElement;"
        "const out = [...d.querySelectorAll('body *')].filter(e => !e.closest('.scroll,svg,nav')"
        " && e.getBoundingClientRect().right > w.clientWidth + 0.5).map(e => e.tagName);"
        "document.title = [w.scrollWidth - w.clientWidth, w.scrollHeight, out.length,"
        " d.querySelectorAll('svg').length].join(' ') }"
        "</script>"
    )
    write(tmp_path / "frame.html", frame)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'frame.html'}"],
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    title = re.search(r"<title>([\d ]+)</title>", shown)
    assert title is not None, shown[-500:]
    excess, height, beyond, charts = map(int, title[1].split())
    assert excess == 0
    assert height > 3000
    assert beyond == 0
    assert charts == page.count("<svg")


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def without(folder, *names):
    for name in names:
        (folder / name).unlink()
    return folder


def test_a_run_took_what_its_segments_took_without_the_time_between():
    minute = {"start": "2026-11-22T20:00:00+00:00", "end": "2026-11-22T20:01:00+00:00"}
    later = {"start": "2026-11-25T08:00:00+00:00", "end": "2026-11-25T08:00:20+00:00"}
    killed = {"start": "2026-11-23T08:00:00+00:00", "state": "killed"}
    assert taken({**minute, "end": later["end"], "segments": [minute, killed, later]}) == 80
    assert taken(minute) == 60  # of a version without segments
    assert taken({}) is None
