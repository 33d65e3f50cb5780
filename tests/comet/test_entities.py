import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comet.tasks.entities import Span, is_bio, spans, types

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
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_nervaluate(tags):
    loaders = pytest.importorskip("nervaluate.loaders")
    (expected,) = loaders.ListLoader().load([tags])
    assert spans(tags) == [(one.label, one.start, one.end + 1) for one in expected]
