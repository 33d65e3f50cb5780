"""MADLAD-400 from the hub, which a small server stands in for."""

import functools
import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_files import OPTIONS, records, take, texts, write
from hub_server import HubServer, point_at
from huggingface_hub import HfFileSystem, hf_file_system

from comet.corpus import connection, hub, open_corpus

ROOT = Path(__file__).resolve().parents[2]
BLOCK_BYTES = 8192


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub with two shards of Hausa and one of Yoruba, and a client that does not wait long."""
    for number in range(2):
        noise = random.Random(number)
        noisy = [f"{text} {noise.randbytes(40).hex()}" for text in texts(f"h{number}", 900)]
        write(tmp_path / f"data/ha/ha_clean_000{number}.jsonl.gz", records(noisy))
    write(tmp_path / "data/yo/yo_clean_0000.jsonl.gz", records(texts("yo", 300)))
    write(tmp_path / "README.md", ["A dataset."])
    with HubServer(tmp_path, "allenai/MADLAD-400") as server:
        point_at(server, monkeypatch)
        monkeypatch.setattr(
            hf_file_system,
            "http_backoff",
            functools.partial(hf_file_system.http_backoff, max_retries=0),
        )
        monkeypatch.setattr(connection, "WAITS", (0.01, 0.01))
        monkeypatch.setattr(connection, "BLOCK_BYTES", BLOCK_BYTES)
        monkeypatch.setattr(connection, "BUFFER_BYTES", 1000)
        HfFileSystem.clear_instance_cache()
        yield server
        HfFileSystem.clear_instance_cache()


def open_hub(spec="madlad400:ha,yo", **options):
    return open_corpus([spec], shuffle_buffer=200, **{**OPTIONS, **options})


def test_the_hub_gives_what_the_same_files_hold_on_a_disk(served):
    remote = open_hub()
    local = open_corpus(
        ["madlad400:ha,yo"],
        madlad_base=str(served.folder / "data"),
        shuffle_buffer=200,
        **OPTIONS,
    )
    assert remote.estimates == pytest.approx(local.estimates)
    assert remote.held_out() == local.held_out()
    assert take(remote.training_stream(), 2500) == take(local.training_stream(), 2500)
    ranges = [
        request for request in served.requests if "/resolve/" in request and "bytes=" in request
    ]
    assert len(ranges) > 10


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_connection_that_breaks_in_mid_file_goes_on_where_it_stood(served, caplog, cuts):
    expected = take(open_hub("madlad400:ha").training_stream(), 1700)
    HfFileSystem.clear_instance_cache()
    stream = open_hub("madlad400:ha").training_stream()
    served.cut_after, served.cuts = 3 * BLOCK_BYTES + 1234, cuts
    with caplog.at_level(logging.WARNING):
        found = take(stream, 1700)
    assert served.cuts == 0
    assert found == expected
    assert len({one.text for one in found}) == 1700
    broken = [
        record.getMessage() for record in caplog.records if "broke off" in record.getMessage()
    ]
    assert len(broken) == cuts
    (place,) = {re.search(r"broke off at byte (\d+) \(", line)[1] for line in broken}
    assert int(place) >= BLOCK_BYTES


def test_a_connection_that_breaks_again_after_progress_has_all_its_tries_again(served):
    expected = take(open_hub("madlad400:ha").training_stream(), 1700)
    HfFileSystem.clear_instance_cache()
    stream = open_hub("madlad400:ha").training_stream()
    found = []
    for _ in range(6):  # more often than one place is tried
        served.cut_after, served.cuts = 1000, 2
        found += take(stream, 280)
    assert found == expected[: len(found)]


def test_a_connection_that_never_comes_back_ends_with_one_clear_line(served):
    corpus = open_hub("madlad400:ha")
    stream = corpus.training_stream()
    served.cut_after, served.cuts = 2 * BLOCK_BYTES, 1000
    with pytest.raises(
        ValueError, match=r"cannot read hf://.*/ha/ha_clean_.*--corpus toy"
    ) as error:
        take(stream, 1700)
    assert "\n" not in str(error.value)
    assert served.cuts == 1000 - 1 - len(connection.WAITS)
    assert not len(corpus.problems)


def test_an_error_of_the_server_passes(served):
    expected = take(open_hub("madlad400:yo").training_stream(), 500)
    HfFileSystem.clear_instance_cache()
    stream = open_hub("madlad400:yo").training_stream()
    served.errors = [500, 503]
    assert take(stream, 500) == expected
    assert served.errors == []


def test_a_language_that_is_not_there_ends_with_one_clear_line(served):
    for code in ("rw", "sw"):
        with pytest.raises(ValueError, match=rf"/data/{code}/{code}_clean_\*\.jsonl\.gz") as error:
            open_hub(f"madlad400:{code}")
        assert "\n" not in str(error.value)


def test_a_revision_is_part_of_the_address(served):
    take(open_hub("madlad400@v1:yo").training_stream(), 5)
    asked = [request for request in served.requests if "/resolve/" in request]
    assert asked
    assert all("/resolve/v1/data/yo/" in request for request in asked)


def test_corrupt_lines_and_the_place_on_the_hub(served):
    write(
        served.folder / "data/yo/yo_clean_0000.jsonl.gz",
        [*records(texts("yo", 150)), "{", *records(texts("y", 150))],
    )
    corpus = open_hub("madlad400:yo")
    stream = corpus.training_stream()
    take(stream, 250)
    (problem,) = corpus.problems.first
    assert str(problem).endswith("data/yo/yo_clean_0000.jsonl.gz:151: not valid JSON")
    state = json.loads(json.dumps(stream.state_dict()))
    expected = take(stream, 300)
    fresh = open_hub("madlad400:yo").training_stream()
    fresh.load_state_dict(state)
    assert take(fresh, 300) == expected


def test_a_shard_that_changed_on_the_hub_is_another_corpus(served):
    state = open_hub("madlad400:yo").training_stream().state_dict()
    shard = served.folder / "data/yo/yo_clean_0000.jsonl.gz"
    content = bytearray(shard.read_bytes())
    content[9] ^= 1  # a byte of the header that no reader looks at
    shard.write_bytes(content)
    HfFileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match="resume with the same corpus"):
        open_hub("madlad400:yo").training_stream().load_state_dict(state)


def test_another_endpoint_is_the_environments(served):
    program = (
        "from comet.corpus import open_corpus\n"
        "corpus = open_corpus(['madlad400:yo'], temperature=1.0, seed=0, held_out_per_language=3)\n"
        "stream = corpus.training_stream()\n"
        "print(len({next(stream).text for _ in range(200)}))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": served.endpoint}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "200\n"


def test_without_the_hub_the_remedy_is_named(monkeypatch):
    class UnreachableError(Exception):
        pass

    def refuse(pattern):
        raise UnreachableError("no route to host\nand more lines")

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "url_to_fs", refuse)
    expected = r"cannot read hf://datasets/allenai/MADLAD-400@v2/data/ha/.*\(no route to host\).*--corpus toy"
    with pytest.raises(ValueError, match=expected) as error:
        open_corpus(["madlad400@v2:ha"], **OPTIONS)
    assert "\n" not in str(error.value)
