"""Text that is not held in memory: local files above a size, and folders laid out like MADLAD-400's."""

import gzip
import json
import logging
import os
import random
from pathlib import Path

import pytest
from corpus_files import OPTIONS, cut_off, records, take, texts, write, write_two_languages

from comet.corpus import open_corpus, streamed
from comet.corpus.documents import content_hash

BLOCK = 64


@pytest.fixture
def folder(tmp_path):
    return write_two_languages(tmp_path / "data")


@pytest.fixture(params=["local", "madlad"])
def stream_from(request, folder):
    """Open the two languages, or some, as a corpus that is streamed."""

    def open_streamed(*languages, **options):
        options = {**OPTIONS, "shuffle_buffer": BLOCK, **options}
        if request.param == "local":
            return open_corpus([str(folder)], languages=languages or None, in_memory=0, **options)
        chosen = ",".join(languages or ("ha", "yo"))
        return open_corpus([f"madlad400:{chosen}"], madlad_base=str(folder), **options)

    return open_streamed


def whole(folder, *languages):
    """The training texts and the held-out ones, as a corpus in memory has them."""
    corpus = open_corpus(
        [str(folder)], languages=languages or None, **{**OPTIONS, "held_out_per_language": 99}
    )
    held_out = corpus.held_out()
    documents = take(corpus.training_stream(), 6000)
    return {(one.language, one.text) for one in documents}, held_out


def test_a_stream_gives_what_memory_would(stream_from, folder):
    corpus = stream_from(held_out_per_language=99)
    trained, held_out = whole(folder)
    assert corpus.languages == ("hau", "yor")
    assert corpus.counts == {"hau": None, "yor": None}
    assert {name: set(found) for name, found in corpus.held_out().items()} == {
        name: set(found) for name, found in held_out.items()
    }
    found = {(one.language, one.text) for one in take(corpus.training_stream(), 2500)}
    assert found == trained


def test_languages_are_mixed_by_an_estimate_of_their_documents(stream_from):
    corpus = stream_from(temperature=2.0)
    assert corpus.estimates == pytest.approx({"hau": 400 * 0.98, "yor": 100 * 0.98}, rel=0.05)
    assert corpus.probabilities == pytest.approx({"hau": 2 / 3, "yor": 1 / 3}, abs=0.01)
    assert corpus.probabilities == corpus.training_stream().probabilities


def test_every_epoch_is_whole_and_in_another_order(stream_from, folder):
    trained, _ = whole(folder, "ha")
    stream = stream_from("ha").training_stream()
    epochs = [[one.text for one in take(stream, len(trained))] for _ in range(6)]
    assert all({("hau", text) for text in epoch} == trained for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    first_of_either_file = {epoch[0][:2] for epoch in epochs}
    assert first_of_either_file == {"ha", "hb"}
    numbers = [int(text.split()[-1]) for text in epochs[0]]
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("streams", [2, 3])
def test_streams_share_the_texts_of_an_epoch(stream_from, folder, streams):
    """Two of them take a file each, three every third line."""
    trained, _ = whole(folder, "ha")
    corpus = stream_from("ha", streams=streams)
    shares = []
    for number in range(streams):
        stream = corpus.training_stream(number)
        share = []
        while (text := next(stream).text) not in share:
            share.append(text)
        shares.append(share)
    together = [("hau", text) for share in shares for text in share]
    assert len(together) == len(trained)
    assert set(together) == trained


@pytest.mark.parametrize("spent", [0, 1, 63, 64, 65, 130, 391, 392, 393, 700])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_restored_stream_goes_on_exactly(stream_from, spent, streams):
    stream = stream_from(streams=streams).training_stream(streams - 1)
    take(stream, spent)
    state = json.loads(json.dumps(stream.state_dict()))
    assert len(json.dumps(state)) < 1000
    expected = take(stream, 300)
    fresh = stream_from(streams=streams).training_stream(streams - 1)
    take(fresh, 13)
    fresh.load_state_dict(state)
    assert take(fresh, 300) == expected
    again = stream_from(streams=streams).training_stream(streams - 1)
    again.load_state_dict(fresh.state_dict())
    assert take(again, 200) == take(stream, 200)


def test_a_place_among_other_files_is_refused(stream_from, folder):
    state = stream_from().training_stream().state_dict()
    write(folder / "ha/ha_clean_0002.jsonl.gz", records(texts("hc", 5)))
    with pytest.raises(ValueError, match="resume with the same corpus"):
        stream_from().training_stream().load_state_dict(state)


def test_files_are_told_apart_by_content_and_not_by_where_and_when(stream_from, folder, tmp_path):
    before = stream_from().fingerprint()
    file = folder / "ha/ha_clean_0001.jsonl.gz"
    content = file.read_bytes()
    os.utime(file, (1, 1))
    assert stream_from().fingerprint() == before
    write(file, records(reversed(texts("hb", 150))))
    assert stream_from().fingerprint() != before
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert stream_from().fingerprint() != before
    file.write_bytes(content)
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(folder)
    assert stream_from().fingerprint() == before


def test_no_more_than_a_block_of_each_language_is_held(tmp_path, monkeypatch):
    class Text(str):
        """Strings that are counted while they live."""

        alive = most = 0

        def __init__(self, _):
            Text.alive += 1
            Text.most = max(Text.most, Text.alive)

        def __del__(self):
            Text.alive -= 1

    read = streamed.documents
    monkeypatch.setattr(
        streamed,
        "documents",
        lambda *given: (line._replace(text=Text(line.text)) for line in read(*given)),
    )
    for language in ("ha", "yo"):
        write(tmp_path / language / "a.txt.gz", texts(language, 5000))
    corpus = open_corpus([str(tmp_path)], in_memory=0, shuffle_buffer=100, **OPTIONS)
    stream = corpus.training_stream()
    for _ in range(2000):
        next(stream)
    assert 200 <= Text.most <= 205


def test_files_above_the_limit_are_streamed_all_together(tmp_path):
    generator = random.Random(0)
    for language in ("ha", "yo"):
        noise = [generator.randbytes(300).hex() for _ in range(1100)]
        write(tmp_path / language / "a.txt", noise)
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*"))
    assert 1 << 20 < size < 2 << 20
    held = open_corpus([str(tmp_path)], in_memory=2, **OPTIONS)
    assert held.counts == {"hau": 1100, "yor": 1100}
    assert open_corpus([str(tmp_path)], in_memory=1, **OPTIONS).counts == {"hau": None, "yor": None}
    one = open_corpus([str(tmp_path)], languages=["ha"], in_memory=1, **OPTIONS)
    assert one.counts == {"hau": 1100}


def test_bad_lines_are_counted_once_however_often_they_are_read(stream_from, folder, caplog):
    bad = ["{", '{"text": "  "}', '{"text": 7}']
    file = write(
        folder / "ha/ha_clean_0001.jsonl.gz", [*records(texts("hb", 90)), *bad, *records(["last"])]
    )
    corpus = stream_from("ha")
    with caplog.at_level(logging.WARNING):
        take(corpus.training_stream(), 1500)
        corpus.problems.report()
        corpus.problems.report()
    assert corpus.problems.by_file == {file: 3}
    assert list(map(str, corpus.problems.first)) == [
        f"{file}:91: not valid JSON",
        f"{file}:92: empty text",
        f'{file}:93: "text" is int, not a string',
    ]
    assert len(caplog.records) == 1
    strict = stream_from("ha", strict=True)
    with pytest.raises(ValueError, match=r"ha_clean_0001\.jsonl\.gz:91: not valid JSON"):
        take(strict.training_stream(), 1500)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_shard_that_ends_too_early_is_reported_once_and_the_next_is_read(
    stream_from, folder, streams
):
    write(folder / "ha/ha_clean_0000.jsonl.gz", records(texts("ha", 4000)))
    cut_off(folder / "ha/ha_clean_0000.jsonl.gz")
    corpus = stream_from("ha", streams=streams)
    found = {
        one.text for number in range(streams) for one in take(corpus.training_stream(number), 6000)
    }
    read = sum(text.startswith("ha") for text in found)
    assert 1000 < read < 3500
    assert sum(text.startswith("hb") for text in found) >= 140
    (problem,) = corpus.problems.first
    assert Path(problem.file).name == "ha_clean_0000.jsonl.gz"
    assert problem.line > read
    assert "cannot be read from here on" in problem.reason


@pytest.mark.parametrize("streams", [2, 3])
def test_a_broken_shard_is_reported_by_one_of_several_processes(stream_from, folder, streams):
    write(folder / "ha/ha_clean_0000.jsonl.gz", records(texts("ha", 4000)))
    cut_off(folder / "ha/ha_clean_0000.jsonl.gz")
    found = []
    for number in range(streams):
        corpus = stream_from("ha", streams=streams)
        take(corpus.training_stream(number), 4000)
        found.append(len(corpus.problems))
    assert sorted(found) == [0] * (streams - 1) + [1]


def test_nothing_to_train_on_or_to_hold_out_ends_with_one_clear_line(stream_from, folder):
    write(folder / "yo/yo_clean_0000.jsonl.gz", ["{", "{"])
    corpus = stream_from("yo")
    with pytest.raises(ValueError, match=r"yor has nothing to train on \(.*:1: not valid JSON\)"):
        next(corpus.training_stream())
    with pytest.raises(
        ValueError, match=r"no document of yor is held out .*:1: not valid JSON; replace that file"
    ):
        corpus.held_out()
    write(folder / "yo/yo_clean_0000.jsonl.gz", records(["one", "two"]))
    with pytest.raises(ValueError, match=r"no document of yor is held out .*; give more text"):
        stream_from("yo").held_out()


def test_a_damaged_file_is_named_and_not_called_too_little_text(stream_from, folder):
    path = folder / "yo/yo_clean_0000.jsonl.gz"
    whole = path.read_bytes()
    one_text = gzip.compress(f"{records(['one text'])[0]}\n".encode())
    for content in (
        whole[:40],
        whole[:20] + b"\0" * 30 + whole[50:],
        b"no gzip",
        one_text + b"more",
    ):
        path.write_bytes(content)
        for use in (
            lambda: stream_from("yo").held_out(),
            lambda: open_corpus([str(path.parent)], **OPTIONS),
        ):
            with pytest.raises(ValueError, match="damaged or cut off, fetch it again") as error:
                use()
            assert f"{path}:" in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sw_clean_0000.jsonl.gz", "sw_noisy_0012.jsonl"])
def test_madlads_newlines_are_newlines_on_the_hub_and_on_a_disk(folder, name):
    lines = [r"one\ntwo", r"\n", r"\n\nthree\n", *texts("sw", 90)]
    path = folder / "sw" / name
    write(path, records(lines))
    opened = [open_corpus([str(path.parent)], in_memory=size, **OPTIONS) for size in (1024, 0)]
    if "clean" in name:
        opened.append(open_corpus(["madlad400:swa"], madlad_base=str(folder), **OPTIONS))
    for corpus in opened:
        got = {document.text for document in take(corpus.training_stream(), 93)}
        assert {"one\ntwo", "three"} <= got
        assert not any("\\n" in text for text in got)
        assert corpus.problems.first[0].line == 2
    (folder / "other/sw").mkdir(parents=True)
    path.rename(folder / "other/sw" / name.replace("sw_", "news-"))
    other = open_corpus([str(folder / "other")], **OPTIONS)
    assert r"one\ntwo" in {one.text for one in take(other.training_stream(), 93)}


def test_a_place_in_madlads_files_from_before_their_newlines_were_read_is_refused(folder):
    corpus = open_corpus([str(folder)], in_memory=0, **OPTIONS)
    names = ["ha/ha_clean_0000.jsonl.gz", "ha/ha_clean_0001.jsonl.gz"]
    hashed = "\n".join(f"{name} {(folder / name).stat().st_size} " for name in names)
    before = content_hash(hashed)
    assert corpus._sources[0].earlier_fingerprint() != before
    for name in names:
        (folder / name).rename(folder / name.replace("clean", "part"))
    other = open_corpus([str(folder)], in_memory=0, **OPTIONS)
    before = content_hash(hashed.replace("clean", "part"))
    assert other._sources[0].earlier_fingerprint() == before
