import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comet.tasks.entities import Span, as_bio, is_bio, scheme_of, spans, types

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_an_entity_ends_where_another_begins_and_may_begin_inside():
    tags = ["B-PER", "B-PER", "I-PER", "I-LOC", "O", "I-PER", "I-PER"]
    assert spans(tags) == [
        Span("PER", 0, 1),
        Span("PER", 1, 3),
        Span("LOC", 3, 4),
        Span("PER", 5, 7),
    ]
    assert spans([]) == spans(["O"]) == []
    assert types(TAGS) == ("PER", "LOC")
    assert [is_bio(tag) for tag in ("O", "B-X", "I-X", "B-", "X", "E-X", "")] == [True] * 3 + [
        False
    ] * 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(TAGS), max_size=12), max_size=5))
def test_every_scheme_says_the_same_entities(sentences):
    expected = [spans(tags) for tags in sentences]
    for scheme in ("IOB1", "IOBES", "BILOU"):
        written = [
            tagged(found, len(tags), scheme)
            for found, tags in zip(expected, sentences, strict=True)
        ]
        for tags, found in zip(written, expected, strict=True):
            assert spans(as_bio(tags, scheme)) == found
            assert all(is_bio(tag) for tag in as_bio(tags, scheme))
        if scheme != "IOB1" and any(expected):
            assert scheme_of(written) in (scheme, "BIO")  # B- and I- alone where none ends
    assert [as_bio(tags, "BIO") for tags in sentences] == [tuple(tags) for tags in sentences]


def tagged(entities, length, scheme):
    """Entities in a scheme."""
    tags = ["O"] * length
    end = 0
    for one in entities:
        for place in range(one.start, one.end):
            first, last = place == one.start, place == one.end - 1
            after_another = place > 0 and place == end and tags[place - 1][2:] == one.type
            letter = {
                "IOB1": "B" if after_another else "I",
                "IOBES": "S" if first and last else "B" if first else "E" if last else "I",
                "BILOU": "U" if first and last else "B" if first else "L" if last else "I",
            }[scheme]
            tags[place] = f"{letter}-{one.type}"
        end = one.end
    return tags


def test_a_scheme_is_told_by_its_tags_and_errors_do_not_tell_one():
    bio = [["B-PER", "I-PER", "O", "B-LOC"]] * 50
    assert scheme_of([]) == scheme_of([["O", "junk", ""]]) == "BIO"
    assert scheme_of([*bio, ["S-PER", "E-LOC"]]) == "BIO"
    assert scheme_of([*bio, ["O", "I-PER"]]) == "BIO"
    assert as_bio(["E-PER", "S-PER", "E-LOC", "junk", ""], "IOBES") == (
        "B-PER", "B-PER", "B-LOC", "junk", "",
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_nervaluate(tags):
    loaders = pytest.importorskip("nervaluate.loaders")
    (expected,) = loaders.ListLoader().load([tags])
    assert spans(tags) == [(one.label, one.start, one.end + 1) for one in expected]
