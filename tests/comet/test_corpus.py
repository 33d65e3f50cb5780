import gzip
import json
import logging
import pickle
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from corpus_files import OPTIONS, cut_off, records, take, texts, write, write_two_languages

from comet.corpus import Document, lines, open_corpus
from comet.corpus.documents import find_language, is_language, language_code, two_letter_code
from comet.corpus.memory import PackedTexts
from comet.corpus.problems import FILE, Problem, Problems

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"


def everything(corpus):
    """All documents of a corpus that is held in memory, as a multiset of training texts by language."""
    stream = corpus.training_stream()
    seen = {language: Counter() for language in corpus.languages}
    for document in take(stream, 60 * sum(corpus.counts.values())):
        seen[document.language][document.text] += 1
    return seen


@pytest.fixture
def folder(tmp_path):
    return write_two_languages(tmp_path / "data")


# Local files


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt", ".txt.gz"])
def test_every_kind_of_file_is_read_the_same(tmp_path, suffix):
    lines = texts("ọmọ", 60)
    file = write(tmp_path / f"a{suffix}", lines if "txt" in suffix else records(lines))
    corpus = open_corpus([file], **OPTIONS)
    assert corpus.counts == {"und": 60}
    trained = set(everything(corpus)["und"])
    assert trained | set(corpus.held_out()["und"]) == set(lines)


def test_languages_come_from_folders(tmp_path, folder):
    alone = write(tmp_path / "swa/news.jsonl", records(texts("sw", 10)))
    nowhere = write(tmp_path / "misc/news.txt", texts("misc", 10))
    corpus = open_corpus([str(folder), alone, nowhere], **OPTIONS)
    assert corpus.counts == {"hau": 400, "swa": 10, "und": 10, "yor": 100}
    assert open_corpus([str(folder / "yo")], **OPTIONS).counts == {"yor": 100}


def test_languages_can_be_chosen_by_either_code(folder):
    assert open_corpus([str(folder)], languages=["ha"], **OPTIONS).languages == ("hau",)
    assert open_corpus([str(folder)], languages=["yor"], **OPTIONS).languages == ("yor",)
    with pytest.raises(ValueError, match="languages: got kin, expected of hau, yor"):
        open_corpus([str(folder)], languages=["rw", "ha"], **OPTIONS)


def test_a_file_given_twice_is_read_once(folder):
    inside = str(folder / "yo/yo_clean_0000.jsonl.gz")
    assert open_corpus([str(folder), inside], **OPTIONS).counts == {"hau": 400, "yor": 100}


def test_bad_lines_are_skipped_and_reported_once(tmp_path, caplog):
    good = records(texts("good", 60))
    bad = ["{not json", '{"body": "x"}', '{"text": 7}', '{"text": "  "}', b"\xff\xfe{}\n", "[1]",
           '{"text": "\\ud800"}', "[" * 100_000]  # fmt: skip
    file = write(tmp_path / "a.jsonl", [*good[:2], *bad, *good[2:]])
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus([file], **OPTIONS)
    assert corpus.counts == {"und": 60}
    (record,) = caplog.records
    message = record.getMessage()
    assert "8 lines cannot be read and are skipped" in message
    assert "a.jsonl:3: not valid JSON; " in message
    assert 'a.jsonl:4: no "text"; ' in message
    assert len(corpus.problems) == 8
    assert corpus.problems.by_file == {file: 8}
    assert [problem.line for problem in corpus.problems.first] == [3, 4, 5]


def test_files_of_other_kinds_in_a_folder_are_named(folder, caplog):
    write(folder / "yo/more.jsonl.zst", ["x"])
    with caplog.at_level(logging.WARNING):
        open_corpus([str(folder)], **OPTIONS)
    assert "left out 1 files of other kinds" in caplog.text
    assert "more.jsonl.zst" in caplog.text


def test_strictness_ends_at_the_first_bad_line(tmp_path):
    file = write(tmp_path / "a.jsonl", [*records(texts("good", 60)), "{", "["])
    with pytest.raises(ValueError, match=r"a\.jsonl:61: not valid JSON; corpus\.strict"):
        open_corpus([file], **OPTIONS, strict=True)


def test_a_line_without_end_is_skipped_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    long = json.dumps({"text": "x" * 250})
    exact = json.dumps({"text": "y" * (99 - len('{"text": ""}'))})
    file = write(tmp_path / "a.jsonl", [*records(texts("a", 20)), long, exact, "{"])
    corpus = open_corpus([file], **OPTIONS)
    assert corpus.counts == {"und": 21}
    assert [str(problem).removeprefix(file) for problem in corpus.problems.first] == [
        ":21: longer than 0 MiB",
        ":23: not valid JSON",
    ]


def test_a_damaged_file_is_read_to_where_it_breaks_and_the_next_follows(tmp_path, caplog):
    for number in range(2):
        write(tmp_path / f"ha/{number}.jsonl.gz", records(texts(f"n{number}", 3000)))
    cut_off(tmp_path / "ha/0.jsonl.gz")
    (tmp_path / "ha/2.jsonl.gz").write_text("not gzip")
    write(tmp_path / "ha/3.jsonl.gz", [])
    corpus = open_corpus([str(tmp_path)], **OPTIONS)
    count = corpus.counts["hau"]
    assert 3500 < count < 5500
    broken, foreign, empty = corpus.problems.first
    assert (Path(broken.file).name, broken.line) == ("0.jsonl.gz", count - 3000 + 1)
    assert "cannot be read from here on (Compressed file ended" in broken.reason
    assert (Path(foreign.file).name, foreign.line) == ("2.jsonl.gz", 1)
    assert str(empty).endswith("3.jsonl.gz:1: the file is empty")
    assert "3 lines cannot be read" in caplog.text
    with pytest.raises(ValueError, match=r"0\.jsonl\.gz:\d+: the file cannot be read from here"):
        open_corpus([str(tmp_path)], **OPTIONS, strict=True)


def test_what_cannot_be_used_ends_with_one_clear_line(tmp_path, folder):
    (tmp_path / "none").mkdir()
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("not gzip")
    cases = {
        str(tmp_path / "missing"): "does not exist; give a file, a folder, toy or madlad400",
        str(plain): r"nothing to read in .*plain\.jsonl\.gz:1: .*Not a gzipped file",
        write(tmp_path / "empty.jsonl.gz", []): "nothing to read in",
        write(tmp_path / "plain.txt", []): "nothing to read in .*plain.txt:1: the file is empty",
        write(
            tmp_path / "bad.jsonl", ["{", "{"]
        ): "nothing to read in .*bad.jsonl:1: not valid JSON",
        write(tmp_path / "table.csv", ["a,b"]): "unknown suffix, expected .jsonl, .jsonl.gz, .txt",
        str(tmp_path / "none"): "expected LANG/\\*.jsonl.gz",
        write(
            tmp_path / "one.txt", ["all in one line"]
        ): "1 distinct documents, expected at least 2",
        "madlad400:": "expected languages after the colon",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            open_corpus([path], **OPTIONS)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="hau comes from 2 sources"):
        open_corpus([str(folder), "toy"], **OPTIONS)
    with pytest.raises(ValueError, match="got no path"):
        open_corpus([], **OPTIONS)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.0), ("temperature", float("nan")), ("seed", -1),
                          ("held_out_per_language", 0)],
)  # fmt: skip
def test_impossible_numbers_are_refused(folder, option, value):
    with pytest.raises(ValueError, match=f"{option}: got"):
        open_corpus([str(folder)], **{**OPTIONS, option: value})


# What is held out


def test_held_out_depends_on_the_texts_alone(tmp_path):
    lines = texts("x", 3000)
    one = open_corpus([write(tmp_path / "a.txt", lines)], **{**OPTIONS, "seed": 1})
    two = open_corpus(
        [
            write(tmp_path / "b.txt", lines[2000:][::-1]),
            write(tmp_path / "c.jsonl", records(lines[:2000])),
        ],
        **{**OPTIONS, "seed": 2},
    )
    assert one.held_out() == two.held_out()
    assert one.fingerprint() == two.fingerprint()
    part = open_corpus(
        [write(tmp_path / "d.txt", lines[:1500])], **{**OPTIONS, "held_out_per_language": 999}
    )
    whole = open_corpus([str(tmp_path / "a.txt")], **{**OPTIONS, "held_out_per_language": 999})
    kept_out = set(whole.held_out()["und"])
    assert 30 <= len(kept_out) <= 90
    assert set(part.held_out()["und"]) == kept_out & set(lines[:1500])
    changed = open_corpus([write(tmp_path / "e.txt", [*lines, "one more"])], **OPTIONS)
    assert changed.fingerprint() != one.fingerprint()


def test_the_same_texts_are_held_out_in_every_process(tmp_path):
    kept_out = open_corpus([write(tmp_path / "a.txt", texts("x", 300))], **OPTIONS).held_out()[
        "und"
    ]
    assert sorted(int(text.split()[-1]) for text in kept_out) == [
        71,
        122,
        126,
        129,
        130,
        155,
        160,
        180,
        191,
        263,
    ]


def test_held_out_texts_and_their_copies_are_never_trained_on(tmp_path):
    lines = texts("x", 300)
    corpus = open_corpus(
        [write(tmp_path / "a.txt", lines * 2)], **{**OPTIONS, "held_out_per_language": 1}
    )
    kept_out = set(open_corpus([str(tmp_path / "a.txt")], **OPTIONS).held_out()["und"])
    trained = set(everything(corpus)["und"])
    assert len(corpus.held_out()["und"]) == 1
    assert trained == set(lines) - kept_out


@pytest.mark.parametrize("in_memory", [1024, 0], ids=["in memory", "streamed"])
def test_copies_in_another_normal_form_are_held_out_together(tmp_path, in_memory):
    lines = [f"ọ̀rọ̀ number {index} tí ó dára" for index in range(400)]
    forms = {form: [unicodedata.normalize(form, line) for line in lines] for form in ("NFC", "NFD")}
    file = write(tmp_path / "a.txt", [*forms["NFC"], *forms["NFD"]])
    corpus = open_corpus(
        [file], **{**OPTIONS, "held_out_per_language": 99}, in_memory=in_memory, shuffle_buffer=50
    )
    kept_out = [unicodedata.normalize("NFC", text) for text in corpus.held_out()["und"]]
    trained = {document.text for document in take(corpus.training_stream(), 4000)}
    assert len(kept_out) == len(set(kept_out)) > 1
    assert {unicodedata.normalize("NFC", text) for text in trained} == set(forms["NFC"]) - set(
        kept_out
    )
    assert trained & set(forms["NFD"])  # a model reads text as it was typed


def test_a_corpus_in_another_normal_form_is_another_one_of_the_same_held_out_texts(tmp_path):
    lines = [f"ọ̀rọ̀ number {index} tí ó dára" for index in range(400)]
    found = {}
    for form in ("NFC", "NFD"):
        file = write(tmp_path / f"{form}.txt", [unicodedata.normalize(form, one) for one in lines])
        found[form] = open_corpus([file], **OPTIONS)
    assert found["NFC"].fingerprint() != found["NFD"].fingerprint()
    assert found["NFC"].held_out()["und"] == [
        unicodedata.normalize("NFC", text) for text in found["NFD"].held_out()["und"]
    ]


def test_two_forms_of_one_text_are_one_document(tmp_path):
    file = write(
        tmp_path / "a.txt", [unicodedata.normalize(form, "ọ̀rọ̀") for form in ("NFC", "NFD")]
    )
    with pytest.raises(ValueError, match="1 distinct documents, expected at least 2"):
        open_corpus([file], **OPTIONS)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_tiny_language_still_has_both_parts(tmp_path, count):
    corpus = open_corpus([write(tmp_path / "a.txt", texts("y", count))], **OPTIONS)
    assert len(corpus.held_out()["und"]) == 1
    assert len(everything(corpus)["und"]) == count - 1


# The training stream


def test_an_epoch_gives_every_text_once_and_the_next_in_another_order(tmp_path):
    corpus = open_corpus([write(tmp_path / "a.txt", texts("x", 200))], **OPTIONS)
    size = 200 - len(
        open_corpus(
            [str(tmp_path / "a.txt")], **{**OPTIONS, "held_out_per_language": 99}
        ).held_out()["und"]
    )
    stream = corpus.training_stream()
    first, second = take(stream, size), take(stream, size)
    assert len(set(first)) == size
    assert set(first) == set(second)
    assert first != second
    assert isinstance(first[0], Document)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.8), (2.0, 2 / 3), (1e6, 0.5)])
def test_temperature_mixes_languages(folder, temperature, share):
    corpus = open_corpus([str(folder)], **{**OPTIONS, "temperature": temperature})
    stream = corpus.training_stream()
    assert stream.probabilities["hau"] == pytest.approx(share, abs=0.005)
    drawn = Counter(document.language for document in take(stream, 20_000))
    assert drawn["hau"] / 20_000 == pytest.approx(share, abs=0.015)


def test_streams_share_the_texts_of_an_epoch(folder):
    corpus = open_corpus([str(folder)], languages=["yo"], streams=3, **OPTIONS)
    alone = open_corpus([str(folder)], languages=["yo"], **OPTIONS)
    size = int(alone.estimates["yor"])
    shares = [
        take(corpus.training_stream(number), len(range(number, size, 3))) for number in range(3)
    ]
    together = [document.text for share in shares for document in share]
    assert len(set(together)) == size
    assert set(together) == {document.text for document in take(alone.training_stream(), size)}
    with pytest.raises(ValueError, match=r"corpus\.streams: got 200, but yor has 9\d documents"):
        open_corpus([str(folder)], languages=["yo"], streams=200, **OPTIONS).training_stream()


def test_the_seed_decides_the_order(folder):
    def start(seed):
        return take(open_corpus([str(folder)], **{**OPTIONS, "seed": seed}).training_stream(), 50)

    assert start(1) == start(1)
    assert start(1) != start(2)


@pytest.mark.parametrize("spent", [0, 1, 77, 391, 392, 2000])
def test_a_restored_stream_goes_on_exactly(folder, spent):
    corpus = open_corpus([str(folder)], **OPTIONS)
    stream = corpus.training_stream()
    take(stream, spent)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = take(stream, 1000)
    fresh = open_corpus([str(folder)], **OPTIONS).training_stream()
    take(fresh, 13)
    fresh.load_state_dict(state)
    assert take(fresh, 1000) == expected


def test_a_place_in_another_corpus_is_refused(folder):
    state = open_corpus([str(folder)], **OPTIONS).training_stream().state_dict()
    other = open_corpus([str(folder)], languages=["ha"], **OPTIONS).training_stream()
    with pytest.raises(ValueError, match="resume with the same corpus"):
        other.load_state_dict(state)


def test_toy_is_a_corpus():
    corpus = open_corpus(["toy"], languages=["swa", "kin"], **OPTIONS)
    assert corpus.counts == {"kin": 8000, "swa": 8000}
    assert {len(kept_out) for kept_out in corpus.held_out().values()} == {20}


@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason="the real data is not in shared/data")
def test_real_text_is_read_whole():
    corpus = open_corpus([str(SHARED / "corpus")], languages=["rw"], **OPTIONS)
    assert corpus.counts == {"kin": 12327}
    assert len(corpus.held_out()["kin"]) == 20
    assert all(document.text.strip() for document in take(corpus.training_stream(), 500))


def test_a_link_to_a_file_without_a_suffix_is_read_by_its_own_name(tmp_path):
    """As the hub's cache lays files out."""
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / "abc123"
    with gzip.open(blob, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Jumla ta {number}."}) + "\n" for number in range(4))
    (tmp_path / "text" / "hau").mkdir(parents=True)
    (tmp_path / "text" / "hau" / "hau_clean_0000.jsonl.gz").symlink_to(blob)
    corpus = open_corpus([str(tmp_path / "text")], temperature=1.0, seed=0, held_out_per_language=1)
    assert corpus.counts == {"hau": 4}


def test_packed_texts_are_the_texts_also_as_a_copy():
    given = ["gida", "ọmọ", "", "አዲስ\nworld", "🙂"]
    packed = PackedTexts.pack(iter(given))
    for one in (packed, pickle.loads(pickle.dumps(packed))):
        assert list(one) == given
        assert one[-1] == "🙂"
        assert one[1:3] == ["ọmọ", ""]
    with pytest.raises(IndexError):
        packed[5]
    assert list(PackedTexts.pack(iter([]))) == []


# Encodings

ENCODED = {
    "UTF-16": "is in UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
    "UTF-32": "is in UTF-32, expected UTF-8; convert it: iconv -f UTF-32 -t UTF-8",
    "UTF-16LE": "holds NUL bytes, expected text in UTF-8; .* iconv -f UTF-16LE",
    "UTF-16BE": "holds NUL bytes, expected text in UTF-8",
    "latin-1": "is not in UTF-8: .* lines cannot be read; convert it: iconv -f WINDOWS-1252 -t UTF-8",
}


@pytest.mark.parametrize("in_memory", [1024, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt", ".txt.gz"])
def test_files_in_another_encoding_are_refused_by_name(tmp_path, suffix, in_memory):
    lines = [f"number {index} eg\u00e9szs\u00e9" for index in range(3000)]
    given = [json.dumps({"text": one}, ensure_ascii=False) for one in lines]
    content = "\n".join(given if "json" in suffix else lines)
    write(tmp_path / f"ha/good{suffix}", [content])
    for encoding, message in ENCODED.items():
        bad = tmp_path / f"ha/bad{suffix}"
        write(bad, [content.encode(encoding)])
        with pytest.raises(ValueError, match=f"corpus: .*bad{suffix} {message}") as error:
            open_corpus([str(tmp_path)], **OPTIONS, in_memory=in_memory)
        assert "\n" not in str(error.value)
        bad.unlink()
    assert open_corpus([str(tmp_path)], **OPTIONS, in_memory=in_memory).languages == ("hau",)


def test_a_character_that_ends_behind_the_first_bytes_is_no_other_encoding(tmp_path, monkeypatch):
    for length in range(1, 9):
        monkeypatch.setattr(lines, "HEAD", length)
        open_corpus([write(tmp_path / "a.txt", ["ọọọọọọ", "ẹẹẹ", "ẹọ"])], **OPTIONS)


def test_lines_with_nul_characters_are_counted(tmp_path):
    for file in (
        write(tmp_path / "a.txt", [*texts("x", 60), "a\0b"]),
        write(tmp_path / "b.jsonl", [*records(texts("x", 60)), *records(["a\0b"])]),
    ):
        corpus = open_corpus([file], **OPTIONS)
        assert corpus.counts == {"und": 60}
        assert [one.reason for one in corpus.problems.first] == ["holds NUL characters"]


def test_folders_are_known_by_codes_names_and_scripts_of_languages():
    known = [
        "ha", "hau", "hau_Latn", "hau-Latn", "ary_Arab", "Hausa", "hausa", "ee", "ewe", "sw", "swa", "swh", "Swahili",
        "twi", "pcm", "pt_BR", "und", "Nigerian Pidgin", "run",
    ]  # fmt: skip
    unknown = [
        "text",
        "data",
        "raw",
        "raw_Text",
        "new",
        "dev",
        "dev_data",
        "cat_pics",
        "corpus",
        "xx",
        "",
        "txt",
    ]
    assert [name for name in known if not is_language(name)] == []
    assert [name for name in unknown if is_language(name)] == []


def test_a_language_has_one_name_in_runs_whatever_it_is_asked_by(tmp_path):
    assert [language_code(name) for name in ("ha", "HAU", "ee", "hau_Latn")] == [
        "hau",
        "hau",
        "ee",
        "hau_latn",
    ]
    names = ["hau_latn", "ewe", "ful"]
    asked = {
        "ha": "hau_latn",
        "hau": "hau_latn",
        "Hausa": "hau_latn",
        "ee": "ewe",
        "ff": "ful",
        "yo": None,
        "x": None,
    }
    assert {name: find_language(name, names) for name in asked} == asked
    assert find_language("ha", ["hau_latn", "hau_arab"]) is None
    assert find_language("hau", ["hau", "hau_latn"]) == "hau"
    codes = {"hau_latn": "ha", "ewe": "ee", "swahili": "sw", "pcm": "pcm", "x": "x"}
    assert {name: two_letter_code(name) for name in codes} == codes
    for name in ("hau_Latn", "ewe"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(
            "\n".join(f"{name} {number}" for number in range(200))
        )
    given = {"temperature": 1.0, "seed": 0, "held_out_per_language": 4}
    assert open_corpus([str(tmp_path)], languages=["ha", "ee"], **given).languages == (
        "ewe",
        "hau_latn",
    )
    assert open_corpus([str(tmp_path / "hau_Latn")], **given).languages == ("hau_latn",)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_what_is_compressed_without_a_name_that_says_so_is_refused(tmp_path, name):
    content = gzip.compress("\n".join(texts("x", 60)).encode())
    with pytest.raises(ValueError, match=f"{name} is compressed by gzip, expected text in UTF-8"):
        open_corpus([write(tmp_path / name, [content])], **OPTIONS)


def test_a_damaged_file_is_told_at_once_and_first(caplog):
    problems = Problems()
    for line in range(100):
        problems.add(Problem("a.txt", line, "not valid JSON"))
    problems.report()
    problems.report([Problem("a.txt", 200, "not valid JSON")])
    assert len(caplog.records) == 1
    damage = Problem("b.txt.gz", 7, f"{FILE} cannot be read from here on")
    problems.report([Problem("a.txt", 201, "not valid JSON"), damage])
    assert "such as b.txt.gz:7: the file cannot be read from here on; a.txt:201" in caplog.text
    problems.report()
    assert len(caplog.records) == 2
