import gzip
import itertools
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from comet.corpus import Document, hub, open_corpus

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
OPTIONS = {"temperature": 1.0, "seed": 0, "held_out_per_language": 20}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(x if isinstance(x, bytes) else x.encode() + b"\n" for x in lines)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def records(texts):
    return [json.dumps({"text": text, "source": "a test"}) for text in texts]


def texts(name, count):
    return [f"{name} number {index}" for index in range(count)]


def take(stream, count):
    return list(itertools.islice(stream, count))


def everything(corpus):
    """All documents of a corpus that is held in memory, as a multiset of training texts by language."""
    stream = corpus.training_stream()
    seen = {language: Counter() for language in corpus.languages}
    for document in take(stream, 60 * sum(corpus.counts.values())):
        seen[document.language][document.text] += 1
    return seen


@pytest.fixture
def folder(tmp_path):
    """Two languages of 400 and 100 documents, in folders like MADLAD-400's."""
    write(tmp_path / "data/ha/ha_clean_0000.jsonl.gz", records(texts("ha", 250)))
    write(tmp_path / "data/ha/ha_clean_0001.jsonl.gz", records(texts("hb", 150)))
    write(tmp_path / "data/yo/yo_clean_0000.jsonl.gz", records(texts("yo", 100)))
    return tmp_path / "data"


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
    assert "skipped 8 of 68 lines" in message
    assert "a.jsonl:3: not valid JSON; " in message
    assert 'a.jsonl:4: no "text"; ' in message


def test_files_of_other_kinds_in_a_folder_are_named(folder, caplog):
    write(folder / "yo/more.jsonl.zst", ["x"])
    with caplog.at_level(logging.WARNING):
        open_corpus([str(folder)], **OPTIONS)
    assert "left out 1 files of other kinds" in caplog.text
    assert "more.jsonl.zst" in caplog.text


def test_what_cannot_be_used_ends_with_one_clear_line(tmp_path, folder):
    whole = Path(write(tmp_path / "whole.jsonl.gz", records(texts("x", 5000)))).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none").mkdir()
    cases = {
        str(tmp_path / "missing"): "does not exist; give a file, a folder, toy or madlad400",
        str(tmp_path / "cut.jsonl.gz"): "cannot read .*cut.jsonl.gz",
        write(tmp_path / "empty.jsonl.gz", []): "nothing to read in",
        write(tmp_path / "plain.txt", []): "nothing to read in .*it is empty",
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
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("not gzip")
    with pytest.raises(ValueError, match=r"cannot read .*plain\.jsonl\.gz"):
        open_corpus([str(plain)], **OPTIONS)
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


# MADLAD-400, from a folder of the same layout


@pytest.fixture
def madlad(folder, monkeypatch):
    pytest.importorskip("datasets", reason="streaming MADLAD-400 needs the datasets package")
    monkeypatch.setattr(hub, "BLOCK", 64)

    def open_madlad(spec="madlad400:ha,yor", **options):
        return open_corpus([spec], madlad_base=str(folder), **{**OPTIONS, **options})

    return open_madlad


def test_madlad_streams_what_the_same_files_hold_locally(madlad, folder):
    streamed = madlad(held_out_per_language=99)
    local = open_corpus([str(folder)], **{**OPTIONS, "held_out_per_language": 99})
    assert streamed.languages == ("hau", "yor")
    assert streamed.counts == {"hau": None, "yor": None}
    kept_out = streamed.held_out()
    assert {name: set(found) for name, found in kept_out.items()} == {
        name: set(found) for name, found in local.held_out().items()
    }
    trained = {(d.language, d.text) for d in take(streamed.training_stream(), 2500)}
    assert trained == {(name, text) for name, found in everything(local).items() for text in found}


def test_madlad_is_shuffled_and_starts_again_in_another_order(madlad):
    stream = madlad("madlad400:yo").training_stream()
    size = 100 - len(madlad("madlad400:yo", held_out_per_language=99).held_out()["yor"])
    first, second = take(stream, size), take(stream, size)
    assert set(first) == set(second)
    assert len(set(first)) == size
    assert first != second
    assert first != sorted(first, key=lambda document: int(document.text.split()[-1]))


@pytest.mark.parametrize("spent", [0, 1, 64, 130, 392, 700])
def test_a_restored_madlad_stream_goes_on_exactly(madlad, spent):
    stream = madlad().training_stream()
    take(stream, spent)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = take(stream, 300)
    fresh = madlad().training_stream()
    take(fresh, 13)
    fresh.load_state_dict(state)
    assert take(fresh, 300) == expected
    again = madlad().training_stream()
    again.load_state_dict(fresh.state_dict())
    assert take(again, 200) == take(stream, 200)


def test_madlad_newlines_are_newlines_and_empty_texts_are_skipped(madlad, folder, caplog):
    odd = [r"one\ntwo", "  ", r"\n"]
    write(folder / "sw/sw_clean_0000.jsonl.gz", records([*odd, *texts("sw", 90)]))
    with caplog.at_level(logging.WARNING):
        stream = madlad("madlad400:swa").training_stream()
        got = {document.text for document in take(stream, 92)}
    assert "one\ntwo" in got
    assert not any("\\n" in text or not text.strip() for text in got)
    assert "skipping documents of" in caplog.text


def test_madlad_that_is_not_there_or_damaged_ends_with_one_clear_line(madlad, folder):
    with pytest.raises(ValueError, match=r"no shards at .*/rw/rw_clean_\*\.jsonl\.gz"):
        madlad("madlad400:rw")
    shard = folder / "yo/yo_clean_0000.jsonl.gz"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read .*yo_clean.*LANG/\*\.jsonl\.gz") as error:
        take(madlad("madlad400:yo").training_stream(), 100)
    assert "\n" not in str(error.value)


def test_without_the_hub_the_remedy_is_named(monkeypatch):
    class UnreachableError(Exception):
        pass

    def refuse(pattern):
        raise UnreachableError("no route to host\nand more lines")

    monkeypatch.setattr(hub, "url_to_fs", refuse)
    expected = r"cannot read hf://datasets/allenai/MADLAD-400@v2/data/ha/.*\(no route to host\).*--corpus toy"
    with pytest.raises(ValueError, match=expected) as error:
        open_corpus(["madlad400@v2:ha"], **OPTIONS)
    assert "\n" not in str(error.value)


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
