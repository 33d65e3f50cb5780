import os
import random
import subprocess
import sys
import unicodedata

import pytest

from comet.toy import LANGUAGES, toy_sentences

PER_LANGUAGE = 8000


@pytest.fixture(scope="module")
def sentences():
    return {language: toy_sentences(language, PER_LANGUAGE) for language in LANGUAGES}


def test_there_are_enough_distinct_sentences(sentences):
    assert {len(set(found)) for found in sentences.values()} == {PER_LANGUAGE}
    assert len(set().union(*sentences.values())) == PER_LANGUAGE * len(LANGUAGES) >= 20_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_is_well_formed(sentences, language):
    for sentence in sentences[language]:
        assert 4 <= len(sentence.split()) <= 20, sentence
        assert sentence[-1] in ".?", sentence
        assert next(letter for letter in sentence if letter.isalpha()).isupper(), sentence
        assert unicodedata.is_normalized("NFC", sentence), sentence
        assert not set("{}/|\n") & set(sentence), sentence
        assert "  " not in sentence, sentence
        assert sentence == sentence.strip()


def test_the_seed_decides_and_nothing_else_does():
    script = "from comet.toy import *; print('|'.join(toy_sentences('yor', 200, seed=3)))"
    texts = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    random.seed(99)
    assert texts[0] == texts[1] == "|".join(toy_sentences("yor", 200, seed=3))
    assert set(toy_sentences("yor", 200, seed=3)) != set(toy_sentences("yor", 200, seed=4))


def test_a_small_draw_has_every_kind_of_sentence():
    drawn = toy_sentences("swa", 80)
    assert sum(sentence.endswith("?") for sentence in drawn) == 10
    assert sum(" lakini " in sentence for sentence in drawn) >= 10
    assert sum(sentence.startswith("Baada ya ku") for sentence in drawn) == 10


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [  # noun-class, gender, harmony and tense agreement between words that stand apart
        ("swa", ("wakulima walipanda", "vitabu vitatu", "kiti hiki ni kikubwa"),
         ("wakulima alipanda", "vitabu watatu", "kiti hiki ni mkubwa")),
        ("kin", ("abahinzi bazahinga", "umwarimu yigishije", "inka eshatu"),
         ("abahinzi azahinga", "umwarimu ya igishije", "inka batatu")),
        ("hau", ("malama ta koyar", "manoma sun shuka", "riga babba ce"),
         ("malama ya", "manoma ya", "riga babba ne")),
        ("ibo", ("nne siri", "nne na-esi", "nwa akwụkwọ na-agụ"), ("nne sira", "nne na-asi", "na-egụ")),
        ("yor", ("wọ́n ra", "wọn yóò ra", "wọn kò ra"), ("wọ́n yóò", "wọ́n kò", "wọn ra")),
    ],
)  # fmt: skip
def test_words_agree(language, right, wrong):
    everything = " ".join(toy_sentences(language, 40_000)).lower()
    assert [phrase for phrase in right if phrase not in everything] == []
    assert [phrase for phrase in wrong if phrase in everything] == []


@pytest.mark.parametrize(
    ("language", "count", "message"),
    [
        ("swa", 10**6, r"count: got 1000000, expected 0 to \d{5}, the distinct sentences of 'swa'"),
        ("swa", -1, "count: got -1"),
        ("fra", 5, "language: got 'fra', expected one of hau, ibo, kin, swa, yor"),
    ],
)
def test_what_cannot_be_drawn_is_refused(language, count, message):
    with pytest.raises(ValueError, match=message):
        toy_sentences(language, count)


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_there_is_can_be_drawn(language):
    with pytest.raises(ValueError, match="expected 0 to") as refusal:
        toy_sentences(language, 10**9)
    available = int(str(refusal.value).split("0 to ")[1].split(",")[0])
    assert len(set(toy_sentences(language, available))) == available
