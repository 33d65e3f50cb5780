"""Background processes: the very same batches, problems that are told, and ends that are clean."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from corpus_files import OPTIONS, cut_off, records, write
from hub_server import HubServer

from comet.batches import Masking, StepBatches
from comet.corpus import open_corpus
from comet.toy import toy_sentences

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"batch_size": 16, "batch_tokens": None, "max_length": 24}
STEPS = 80  # into the third pool


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.fixture
def masking(tokenizer):
    return Masking(tokenizer, 0.15, "all", 3)


def open_text(folder, *, in_memory=0, **options):
    settings = {**OPTIONS, "shuffle_buffer": 150, **options}
    return open_corpus([str(folder)], in_memory=in_memory, **settings)


def same(one, other):
    return all(
        torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


def children_of(process):
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def await_end(processes, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process for process in processes if alive(process)]


@pytest.mark.parametrize("in_memory", [0, 1024])
def test_any_number_of_workers_gives_the_very_same_batches(corpus_folder, masking, in_memory):
    corpus = open_text(corpus_folder, in_memory=in_memory)
    alone = StepBatches(corpus, masking, **SETTINGS)
    states, steps = [], []
    for _ in range(STEPS):
        states.append(json.dumps(alone.state_dict()))
        steps.append(next(alone))
    for workers, start in ((1, 40), (2, 0), (3, 37)):
        batches = StepBatches(corpus, masking, **SETTINGS, workers=workers)
        if start:
            batches.load_state_dict(json.loads(states[start]))
        for state, step in zip(states[start:], steps[start:], strict=True):
            assert json.dumps(batches.state_dict()) == state
            assert same(next(batches), step)
        batches.close()


def test_texts_in_memory_are_there_once(tmp_path, masking):
    write(tmp_path / "a.txt", toy_sentences("hau", 200))
    earlier = texts_held_by("self")  # what other tests left to be collected
    corpus = open_text(tmp_path, in_memory=1024)
    before = set(children_of(os.getpid()))
    batches = StepBatches(corpus, masking, **SETTINGS, workers=1)
    next(batches)
    (worker,) = [child for child in set(children_of(os.getpid())) - before if _works(child)]
    shared = texts_held_by(worker)
    assert len(shared) == 1
    assert [one for one in texts_held_by("self") if one not in earlier] == shared
    batches.close()


def texts_held_by(process):
    """The inode of every mapping of a corpus's texts."""
    return re.findall(r" (\d+) +/memfd:comet-texts", Path(f"/proc/{process}/maps").read_text())


def test_a_position_is_of_what_was_given_not_of_what_was_made(corpus_folder, masking):
    batches = StepBatches(open_text(corpus_folder), masking, **SETTINGS, workers=2)
    take(batches, 3)
    state = json.dumps(batches.state_dict())
    expected = take(batches, 40)
    batches.load_state_dict(json.loads(state))
    assert all(same(next(batches), step) for step in expected[:20])
    batches.close()
    batches.close()
    assert all(same(next(batches), step) for step in expected[20:])
    batches.close()


def test_workers_tell_what_cannot_be_read(tmp_path, masking, caplog):
    lines = records(toy_sentences("hau", 900))
    file = write(tmp_path / "hau/a.jsonl", [*lines[:30], "{", *lines[30:60], "[]", *lines[60:]])
    write(tmp_path / "hau/b.jsonl.gz", lines)
    cut_off(tmp_path / "hau/b.jsonl.gz")
    corpus = open_text(tmp_path, held_out_per_language=1, shuffle_buffer=300)
    for workers in (0, 2):
        corpus = open_text(tmp_path, held_out_per_language=1, shuffle_buffer=300)
        batches = StepBatches(corpus, masking, **SETTINGS, workers=workers)
        caplog.clear()
        take(batches, 3 * STEPS)
        batches.close()
        cut = str(tmp_path / "hau/b.jsonl.gz")
        assert corpus.problems.by_file == {file: 2, cut: 1}
        assert corpus.problems.table() == [f"{file}: 2", f"{cut}: 1"]
        assert f"{file}:31: not valid JSON" in caplog.text
        assert 1 <= len(caplog.records) <= 3
    strict = StepBatches(open_text(tmp_path, strict=True), masking, **SETTINGS, workers=2)
    with pytest.raises(ValueError, match=r"a\.jsonl:31: not valid JSON; corpus\.strict") as error:
        take(strict, 3 * STEPS)
    assert "\n" not in str(error.value)
    strict.close()


def test_a_worker_that_dies_or_fails_ends_the_run_with_one_clear_line(corpus_folder, masking):
    corpus = open_text(corpus_folder)
    batches = StepBatches(corpus, masking, **SETTINGS, workers=1)
    before = set(children_of(os.getpid()))
    next(batches)
    (worker,) = [child for child in set(children_of(os.getpid())) - before if _works(child)]
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"worker 0 died \(exit code -9.*corpus\.workers") as error:
        take(batches, 3 * STEPS)
    assert "\n" not in str(error.value)
    batches.close()
    (source, *_) = corpus._sources
    source.shards = (None,)  # what no code expects
    broken = StepBatches(corpus, masking, **SETTINGS, workers=1)
    with pytest.raises(ValueError, match=r"worker failed \(AttributeError: .*corpus\.workers 0"):
        next(broken)
    broken.close()


def _works(process):
    return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
print("imported", __name__, file=sys.stderr, flush=True)
if __name__ == "__main__":
    from tokenizers import Tokenizer
    from comet.corpus import open_corpus
    from comet.masking import TokenMasking
    from comet.pools import BatchLimits, PoolMaker
    from comet.workers import BackgroundPools
    corpus = open_corpus([sys.argv[1]], temperature=1.0, seed=0, held_out_per_language=1)
    masking = TokenMasking(0.15, 0, mask=299, padding=1, special=(0, 1, 2), vocabulary=300)
    maker = PoolMaker(corpus, 0, Tokenizer.from_file(sys.argv[2]), masking, BatchLimits(16, None, 24))
    pools = BackgroundPools(maker, maker.start(), 2)
    next(pools)
    try:
        print("ready", flush=True)  # and from here on a Ctrl-C may come
        time.sleep(float(sys.argv[3]))
        next(pools)
    except KeyboardInterrupt:
        for _ in range(4):
            next(pools)
        print("interrupted", flush=True)
"""


@pytest.fixture
def tokenizer_file(tmp_path, tokenizer):
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.fixture
def program(tmp_path, corpus_folder, tokenizer_file):
    """Start a program of its own with two workers; wait until they work."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, str(script), str(corpus_folder), tokenizer_file, seconds],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        workers = list(filter(_works, children_of(process.pid)))
        assert len(workers) == 2
        return process, workers

    return start


def test_workers_end_with_the_program_and_import_neither_it_nor_torch(program):
    process, workers = program("0")
    maps = [Path(f"/proc/{worker}/maps").read_text() for worker in workers]
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == "imported __main__\n"
    assert not any("libtorch" in one for one in maps)
    assert await_end(workers) == []


def test_workers_end_when_the_program_is_killed(program):
    process, workers = program("60")
    process.kill()
    _, errors = process.communicate(timeout=30)
    assert await_end(workers) == []
    assert errors == "imported __main__\n"


def test_ctrl_c_reaches_the_program_alone(program):
    process, workers = program("60")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "interrupted\n")
    assert errors == "imported __main__\n"
    assert await_end(workers) == []


def test_a_termination_of_the_whole_group_leaves_the_workers_to_the_program(program):
    process, workers = program("60")
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.3)
    assert all(map(alive, workers))
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert await_end(workers) == []


def test_workers_read_the_hub(tmp_path, tokenizer_file):
    write(tmp_path / "data/ha/ha_clean_0000.jsonl.gz", records(toy_sentences("hau", 600)))
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("[sys.argv[1]]", '["madlad400:ha"]'))
    with HubServer(tmp_path, "allenai/MADLAD-400") as server:
        answer = subprocess.run(
            [sys.executable, str(script), "", tokenizer_file, "0"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.endpoint},
            capture_output=True,
            text=True,
            check=True,
        )
        reads = [request for request in server.requests if "/cdn/data/ha/" in request]
    assert answer.stdout == "ready\n"
    assert len(reads) >= 3  # the program's look at its size, and each worker's
