"""Steps: the same sequences with the same masking however they are sliced, from wherever the run is resumed."""

import itertools
import json

import pytest
import torch
from corpus_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from comet import pools
from comet.batches import IGNORED_LABEL, Masking, StepBatches
from comet.corpus import open_corpus
from comet.masking import TokenMasking
from comet.pools import BatchLimits, tokenise

LENGTH = 24
SETTINGS = {"batch_size": 16, "batch_tokens": None, "max_length": LENGTH}


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch):
    monkeypatch.setattr(pools, "POOL_BATCHES", 8)


@pytest.fixture(params=["in memory", "streamed"])
def text(request, corpus_folder):
    """Open the two languages anew."""

    def open_text(**options):
        in_memory = 0 if request.param == "streamed" else 1024
        defaults = {
            "temperature": 1.0,
            "seed": 3,
            "held_out_per_language": 8,
            "shuffle_buffer": 150,
            "in_memory": in_memory,
        }
        return open_corpus([str(corpus_folder)], **{**defaults, **options})

    return open_text


@pytest.fixture
def masking(tokenizer):
    return Masking(tokenizer, 0.15, "all", 3)


def take(batches, count):
    return list(itertools.islice(batches, count))


def rows_of(piece):
    """Masked ids, labels and language of each row, without padding, whatever piece it is in."""
    real = torch.ones_like(piece.input_ids, dtype=torch.bool) if piece.mask is None else piece.mask
    return [
        (tuple(ids[kept].tolist()), tuple(labels[kept].tolist()), language)
        for ids, labels, kept, language in zip(
            piece.input_ids, piece.labels, real, piece.languages.tolist(), strict=True
        )
    ]


def originals(piece):
    return [
        tuple(i if label == IGNORED_LABEL else label for i, label in zip(ids, labels, strict=True))
        for ids, labels, _ in rows_of(piece)
    ]


def contents(step):
    return sorted(row for piece in step for row in rows_of(piece))


def same(one, other):
    return all(
        torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.kd_positions, b.kd_positions)
        and torch.equal(a.languages, b.languages)
        for a, b in zip(one, other, strict=True)
    )


# What a step reads


def test_every_sequence_of_every_document_is_read_once(text, masking, tokenizer):
    corpus = text()
    documents = corpus.training_stream()
    batches = StepBatches(corpus, masking, **SETTINGS)
    read = []
    while batches.state_dict()["streams"]["0"]["pool"] < 2:
        (piece,) = next(batches)
        read += originals(piece)
        latest = originals(piece)
    read = read[: -len(latest)]  # of the third pool
    end = batches.state_dict()["streams"]["0"]["text"]
    texts = []
    while documents.state_dict() != end:
        texts.append(next(documents).text)
    assert sorted(read) == sorted(map(tuple, tokenise(tokenizer, texts, LENGTH)))


def test_batches_are_full_and_of_similar_length(text, masking):
    pieces = [piece for (piece,) in take(StepBatches(text(), masking, **SETTINGS), 60)]
    assert {len(piece.input_ids) for piece in pieces} <= {14, 15, 16}
    padding = 1 - sum(p.tokens for p in pieces) / sum(p.input_ids.numel() for p in pieces)
    assert padding < 0.08
    assert len({piece.input_ids.shape[1] for piece in pieces}) > 3
    for piece in pieces:
        lengths = [len(ids) for ids, _, _ in rows_of(piece)]
        assert lengths == sorted(lengths, reverse=True)
        assert piece.input_ids.shape[1] == lengths[0]
        assert piece.tokens == sum(lengths)
        assert piece.squared_lengths == sum(length**2 for length in lengths)


def test_languages_are_those_of_the_sequences(text, masking, tokenizer):
    corpus = text()
    spoken = {}
    for document in take(corpus.training_stream(), 3000):
        for ids in tokenise(tokenizer, [document.text], LENGTH):
            spoken.setdefault(tuple(ids), set()).add(corpus.languages.index(document.language))
    found = set()
    for (piece,) in take(StepBatches(corpus, masking, **SETTINGS), 30):
        for ids, language in zip(originals(piece), piece.languages.tolist(), strict=True):
            assert language in spoken[ids]
            found.add(language)
    assert found == {0, 1}


@pytest.mark.parametrize("tokens", [LENGTH, 200, 333, 1000])
def test_a_budget_of_tokens_is_never_exceeded_and_used(text, masking, tokens):
    settings = {**SETTINGS, "batch_tokens": tokens}
    pieces = [piece for (piece,) in take(StepBatches(text(), masking, **settings), 60)]
    areas = [piece.input_ids.numel() for piece in pieces]
    assert max(areas) <= tokens
    assert sum(areas) / len(areas) > (0.6 if tokens == LENGTH else 0.85) * tokens
    if tokens > 200:
        assert len({len(piece.input_ids) for piece in pieces}) > 3


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 64), min_size=1, max_size=200),
    sequences=st.integers(1, 40),
    tokens=st.one_of(st.none(), st.integers(64, 900)),
)
def test_a_cut_keeps_every_sequence_within_the_limits(lengths, sequences, tokens):
    limits = BatchLimits(sequences, tokens, max_length=64)
    enough = limits.enough(len(lengths))
    ordered = sorted(itertools.islice(itertools.cycle(lengths), enough), reverse=True)
    starts = limits.cut(ordered)
    batches = [ordered[a:b] for a, b in itertools.pairwise([*starts, len(ordered)])]
    assert starts[0] == 0
    assert [length for batch in batches for length in batch] == ordered
    assert min(map(len, batches)) >= limits.fewest
    if tokens is None:
        assert max(map(len, batches)) <= sequences
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
    else:
        assert max(len(batch) * batch[0] for batch in batches) <= tokens
    if len(lengths) >= 10 * sequences:
        assert enough == len(lengths)


@pytest.mark.parametrize("tokens", [None, 64, 1000])
@pytest.mark.parametrize("pieces", range(1, 30))
def test_the_lowest_limit_that_is_enough_is_the_lowest(tokens, pieces):
    needed = BatchLimits(1, tokens, 64).needed(pieces)
    for limit, expected in ((needed, True), (needed - 1, False)):
        at = BatchLimits(limit, None if tokens is None else limit, 64)
        assert (limit > 0 and at.fewest >= pieces) == expected


# How it is sliced


@pytest.mark.parametrize("tokens", [None, 400])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("streams", [1, 2])
def test_slices_share_the_same_sequences_with_the_same_masking(
    text, masking, processes, accumulation, streams, tokens
):
    settings = {**SETTINGS, "batch_size": 32, "batch_tokens": tokens and tokens * streams}
    corpus = text(streams=streams)
    whole = take(StepBatches(corpus, masking, **settings), 12)
    parts = [
        take(
            StepBatches(
                corpus, masking, **settings, accumulation=accumulation,
                process=process, processes=processes,
            ),
            12,
        )
        for process in range(processes)
    ]  # fmt: skip
    pieces = max(accumulation, streams // processes)
    for step, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert all(len(share) == pieces for share in shares)
        assert contents(step) == sorted(itertools.chain.from_iterable(map(contents, shares)))
        sizes = [len(piece.input_ids) for share in shares for piece in share]
        assert min(sizes) >= 1
        if tokens is None:
            assert max(sizes) - min(sizes) <= streams
        for share in shares:
            for piece in share:
                longest = max(len(ids) for ids, _, _ in rows_of(piece))
                assert piece.input_ids.shape[1] == longest
                assert piece.tokens == sum(len(ids) for ids, _, _ in rows_of(piece))


def test_no_two_batches_draw_their_masks_alike(text, masking, monkeypatch):
    numbers = []
    rows = TokenMasking.rows

    def note(self, sequences, languages, number):
        numbers.append(tuple(number))
        return rows(self, sequences, languages, number)

    monkeypatch.setattr(TokenMasking, "rows", note)
    take(StepBatches(text(streams=2), masking, **SETTINGS), 20)
    assert len(set(numbers)) == len(numbers) > 40


def test_no_slice_has_much_more_to_do_than_another(text, masking):
    corpus = text()
    work = [
        sum(piece.input_ids.numel() for (piece,) in take(batches, 40))
        for batches in (
            StepBatches(corpus, masking, **SETTINGS, process=process, processes=2)
            for process in range(2)
        )
    ]
    assert max(work) / min(work) < 1.1


@pytest.mark.parametrize(
    ("options", "streams", "message"),
    [
        ({"processes": 3}, 2, r"corpus\.streams: got 2 with 3 processes"),
        (
            {"batch_size": 15},
            2,
            r"batch_size: got 15, expected a multiple of corpus\.streams \(2\)",
        ),
        ({"accumulation": 16}, 1, r"batch_size: got 16, .*16 pieces .*expected 18 or more"),
        ({"accumulation": 8, "processes": 4}, 2, r"batch_size: got 16, .*32 pieces.*expected 36"),
        ({"batch_tokens": 23}, 1, r"batch_tokens: got 23, .*corpus\.max_length \(24\) or more"),
        ({"batch_tokens": 96, "accumulation": 3}, 1, r"batch_tokens: got 96, .*expected 120 or"),
    ],
)
def test_a_piece_that_could_be_empty_is_refused(text, masking, options, streams, message):
    with pytest.raises(ValueError, match=message) as error:
        StepBatches(text(streams=streams), masking, **{**SETTINGS, **options})
    assert "\n" not in str(error.value)


def test_pools_of_next_to_no_tokens_still_fill_every_piece(tmp_path, tokenizer):
    """Long documents that are mostly spaces: fewer sequences than their characters promise."""
    lines = [f"{'gida ' * 2}{chr(0x2003) * 3000}{number}" for number in range(40)]
    corpus = open_corpus(
        [write(tmp_path / "a.txt", lines)], temperature=1.0, seed=0, held_out_per_language=1
    )
    masking = Masking(tokenizer, 0.15, "all", 0)
    for options in ({}, {"batch_tokens": 16 * LENGTH}):
        for process in range(2):
            batches = StepBatches(
                corpus, masking, **{**SETTINGS, **options}, accumulation=4, process=process, processes=2
            )  # fmt: skip
            for step in take(batches, 12):
                assert [len(piece.input_ids) >= 1 for piece in step] == [True] * 4


# Where it goes on


@pytest.mark.parametrize("streams", [1, 2])
def test_a_restored_position_gives_the_same_steps(text, masking, streams):
    batches = StepBatches(text(streams=streams), masking, **SETTINGS)
    states, steps = [], []
    for _ in range(36):
        states.append(json.dumps(batches.state_dict()))
        steps.append(next(batches))
    assert max(map(len, states)) < 3000
    assert json.loads(states[-1])["streams"]["0"]["pool"] > 0
    other = StepBatches(text(streams=streams), masking, **SETTINGS)
    for position in (0, 1, 7, 8, 9, 10, 17, 25):
        other.load_state_dict(json.loads(states[position]))
        assert json.dumps(other.state_dict()) == states[position]
        assert all(same(next(other), step) for step in steps[position : position + 11])


def test_the_states_of_all_processes_are_one(text, masking):
    corpus = text(streams=2)
    together = StepBatches(corpus, masking, **SETTINGS)
    apart = [
        StepBatches(corpus, masking, **SETTINGS, process=process, processes=2)
        for process in range(2)
    ]
    take(together, 12)
    merged = {}
    for batches in apart:
        take(batches, 12)
        assert len(batches.state_dict()["streams"]) == 1
        merged |= batches.state_dict()["streams"]
    assert {"streams": merged} == together.state_dict()
    expected = take(together, 10)
    for number, batches in enumerate(apart):
        batches.load_state_dict({"streams": merged})
        assert all(same(next(batches), step[number : number + 1]) for step in expected)
    with pytest.raises(ValueError, match="has 1 streams, not number 1; resume with as many"):
        together.load_state_dict(apart[0].state_dict())


def test_another_length_goes_on_where_the_text_stood(text, masking, tokenizer):
    corpus = text()
    short = StepBatches(corpus, masking, batch_size=8, batch_tokens=None, max_length=8)
    take(short, 3)
    place = short.text_state()
    ahead = StepBatches(corpus, masking, batch_size=8, batch_tokens=None, max_length=8)
    while ahead.state_dict()["streams"]["0"]["pool"] == 0:
        next(ahead)
    assert (
        ahead.state_dict()["streams"]["0"]["text"] == place["0"]
    )  # behind the pool that was begun
    long = StepBatches(corpus, masking, **SETTINGS, text=json.loads(json.dumps(place)))
    assert long.text_state() == place
    documents = corpus.training_stream()
    documents.load_state_dict(place["0"])
    expected = set(map(tuple, tokenise(tokenizer, [d.text for d in take(documents, 900)], LENGTH)))
    assert all(row in expected for (piece,) in take(long, 20) for row in originals(piece))
