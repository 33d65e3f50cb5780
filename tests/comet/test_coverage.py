import unicodedata

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from comet.coverage import Coverage, coverage, coverage_table
from comet.toy import toy_sentences


@pytest.fixture
def by_hand():
    """Whole words and single pieces that can be counted by hand."""
    vocabulary = {piece: index for index, piece in enumerate(
        ["<s>", "</s>", "<unk>", "gida", "##ta", "yaro"]
    )}  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_pieces_are_counted_without_special_tokens(by_hand):
    # gida | gida ##ta | <unk> | yaro: 5 pieces of 4 words of 4 + 6 + 3 + 4 characters
    found = coverage(by_hand, ["gida  gidata", " ọmọ\nyaro"])
    assert found == Coverage(unknown_rate=1 / 5, pieces_per_word=5 / 4, characters_per_piece=17 / 5)


def test_characters_are_counted_the_same_however_they_were_typed(by_hand):
    composed, decomposed = (unicodedata.normalize(form, "gida ọ̀rọ̀ yaro") for form in ("NFC", "NFD"))
    assert len(decomposed) > len(composed)
    assert coverage(by_hand, [composed]) == coverage(by_hand, [decomposed])


def test_a_truncation_that_was_left_on_does_not_shorten_the_texts(by_hand):
    by_hand(["gida yaro"], truncation=True, max_length=3)
    assert coverage(by_hand, ["gida " * 100]).pieces_per_word == 1


def test_text_of_another_script_is_unknown(tokenizer):
    tokens = toy_sentences("hau", 50)
    known = coverage(tokenizer, tokens)
    assert known.unknown_rate < 0.01
    assert 1 < known.pieces_per_word < 6
    foreign = coverage(tokenizer, ["እንደምን አደርክ"])
    assert foreign.unknown_rate > 0.3


def test_no_text_is_refused(by_hand):
    with pytest.raises(ValueError, match="texts: got no word"):
        coverage(by_hand, [" \n"])


def test_the_table_has_a_line_for_each_language():
    lines = coverage_table({"hau": Coverage(0.0123, 1.5, 4.25), "yor": Coverage(0, 2, 3)})
    assert [line.split() for line in lines[1:]] == [
        ["hau", "1.23%", "1.50", "4.25"],
        ["yor", "0.00%", "2.00", "3.00"],
    ]
    assert len({len(line) for line in lines}) == 1
