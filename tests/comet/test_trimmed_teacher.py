"""Distillation from a teacher whose vocabulary is trimmed on the way."""

import json
import math

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from comet import trimmed_teacher
from comet.cache_teacher import main as cache_main
from comet.distill import main
from comet.environment import cache_folder
from comet.quickstart import toy_teacher

TINY = [
    "--student.layers", "1", "--student.hidden_size", "32", "--student.heads", "2", "--student.intermediate_size", "32",
    "--optimisation.warmup_steps", "0", "--steps", "3", "--batch-size", "4", "--corpus.max_length", "32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_CACHE", str(tmp_path / "cache"))


def given(teacher_folder, corpus_folder, output, *more):
    named = {"--teacher": teacher_folder, "--corpus": corpus_folder, "--output": output}
    return [*(str(one) for pair in named.items() for one in pair), *TINY, *more]


def test_the_student_has_the_small_vocabulary_and_a_second_run_the_same_teacher(
    teacher_folder, corpus_folder, tmp_path, monkeypatch, capsys
):
    main(given(teacher_folder, corpus_folder, tmp_path / "first", "--trim", "150"))
    printed = capsys.readouterr().out
    assert "entries     300 to 150" in printed
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "first/student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first/student")
    assert student.config.vocab_size == len(tokenizer) == 150
    record = json.loads((tmp_path / "first/run.json").read_text())
    assert record["teacher"] in printed
    assert record["teacher"].startswith(str(cache_folder() / "trimmed-"))
    agreement = json.loads((tmp_path / "first/agreement.json").read_text())["after"]
    assert all(math.isfinite(one["kl"]) for one in agreement.values())

    monkeypatch.setattr(trimmed_teacher, "trim", None)
    with monkeypatch.context() as patch:  # a cache that can only be read
        patch.setattr(trimmed_teacher, "kept_in_cache", None)
        main(given(teacher_folder, corpus_folder, tmp_path / "second", "--trim", "150"))
    weights = [tmp_path / name / "student/model.safetensors" for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (kept,) = cache_folder().glob("trimmed-*/model.safetensors")
    before = kept.read_bytes()
    kept.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"trimmed-.* is damaged \(.*model.safetensors.*remove it"):
        main(given(teacher_folder, corpus_folder, tmp_path / "third", "--trim", "150"))
    kept.write_bytes(before)
    with pytest.raises(TypeError, match="NoneType"):  # another size is another teacher
        main(given(teacher_folder, corpus_folder, tmp_path / "third", "--trim", "0.99"))


def test_a_cache_folder_that_cannot_be_written_is_said(
    teacher_folder, corpus_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("COMET_CACHE", "/proc/nowhere")
    with pytest.raises(
        OSError, match=r"^cannot write /proc/nowhere: .* set COMET_CACHE to a folder"
    ):
        main(given(teacher_folder, corpus_folder, tmp_path / "run", "--trim", "150"))
    with pytest.raises(
        OSError, match=r"^cannot write /proc/nowhere: .* set COMET_CACHE to a folder"
    ):
        toy_teacher()
    monkeypatch.delenv("COMET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(ValueError, match="no home; set COMET_CACHE to a folder"):
        cache_folder()


def homeless():
    raise RuntimeError("no home")


def test_a_cache_is_made_of_the_trimmed_teacher_and_known_by_it(
    teacher_folder, corpus_folder, tmp_path
):
    cache = tmp_path / "kept"
    cache_main(given(teacher_folder, corpus_folder, cache, "--trim", "150"))
    from_cache = ["--teacher-cache", str(cache)]
    main([*from_cache, *TINY[:-4], "--output", str(tmp_path / "run")])
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/student")
    assert student.config.vocab_size == 150
    main(given(teacher_folder, corpus_folder, tmp_path / "named", "--trim", "150", *from_cache))
    with pytest.raises(ValueError, match="its teacher's weights are not those of"):
        main(given(teacher_folder, corpus_folder, tmp_path / "whole", *from_cache))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trim", "0"], r"teacher\.trim: got 0\.0, expected a number of entries, such as 32000"),
        (["--trim", "150.5"], r"teacher\.trim: got 150\.5, expected a number of entries"),
        (["--trim", "3"], r"teacher\.trim: got 3, expected \d+ or more: 6 special"),
        (["--trim", "3000"], r"teacher\.trim: got 3,000, but the vocabulary has 300 entries"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_no_run_behind(
    teacher_folder, corpus_folder, tmp_path, more, message
):
    with pytest.raises(ValueError, match=message) as raised:
        main(given(teacher_folder, corpus_folder, tmp_path / "run", *more))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("cache/trimmed-*"))


def test_a_size_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.trim: got 150\.0, expected nothing, unless"):
        main(["--trim", "150", "--output", str(tmp_path / "run")])
