import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from tuned_models import NAMES, SENTIMENT, save_tiny

import comet
from comet import Classifier
from comet.classifier import _WORD, Entity
from comet.fine_tuned import find_model
from comet.task_model import CARD
from comet.tasks.entities import spans
from comet.tfidf import TfidfModel
from comet.toy import LANGUAGES, toy_sentences

TEXTS = [text for language in LANGUAGES for text in toy_sentences(language, 6)]


@pytest.fixture(scope="module")
def sentiment(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentiment") / "model"
    return folder, save_tiny(folder, tokenizer, seed=2)


@pytest.fixture(scope="module")
def names(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "model"
    return folder, save_tiny(folder, tokenizer, "token", seed=6, max_length=32)


# Texts


def test_predictions_are_those_of_the_model_alone(sentiment, tokenizer):
    folder, model = sentiment
    found = Classifier(folder, batch_size=4, device="cpu").predict(
        [f"  {text}\n" for text in TEXTS]
    )
    assert len({one.label for one in found}) > 1
    for text, one in zip(TEXTS, found, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            expected = model(inputs.input_ids).logits.softmax(-1)[0].numpy()
        assert tuple(one.probabilities) == SENTIMENT
        np.testing.assert_allclose(list(one.probabilities.values()), expected, atol=1e-6)
        assert one.label == SENTIMENT[expected.argmax()]


def test_neither_order_nor_company_changes_a_prediction(sentiment):
    classifier = Classifier(str(sentiment[0]))
    alone = [classifier.predict([text])[0] for text in TEXTS]
    together = classifier.predict(TEXTS[::-1])[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert classifier.predict([]) == []


def test_a_tfidf_model_predicts_too(tmp_path):
    numbers = [number % 3 for number in range(len(TEXTS))]
    model = TfidfModel(SENTIMENT).fit(TEXTS, numbers)
    model.save(tmp_path / "model")
    classifier = Classifier(tmp_path)
    found = classifier.predict(TEXTS)
    expected = model.predict_proba(TEXTS)
    assert [list(one.probabilities.values()) for one in found] == expected.tolist()
    assert [one.label for one in found] == [SENTIMENT[number] for number in expected.argmax(1)]
    with pytest.raises(ValueError, match="this model classifies texts; call predict"):
        classifier.entities(TEXTS)


# Words


def test_entities_lie_where_their_characters_do(names, tokenizer):
    folder, model = names
    classifier = Classifier(folder)
    texts = ["  Amina, ta tafi Kano-Jigawa!", "E\u0323niyan n\u2019ile (2)", "mai gari"]
    words = [
        ["Amina", ",", "ta", "tafi", "Kano-Jigawa", "!"],
        ["E\u0323niyan", "n\u2019ile", "(", "2", ")"],
        ["mai", "gari"],
    ]
    found = classifier.entities(texts)
    assert sum(map(len, found)) > 2
    for text, given, entities in zip(texts, words, found, strict=True):
        encoded = tokenizer(given, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            answers = model(encoded.input_ids).logits[0].argmax(-1).tolist()
        places = encoded.word_ids()
        tags = [NAMES[answers[places.index(word)]] for word in range(len(given))]
        expected, starts = [], []
        for word in given:
            starts.append(text.index(word, starts[-1] + 1 if starts else 0))
        for kind, first, end in spans(tags):
            stop = starts[end - 1] + len(given[end - 1])
            expected.append(Entity(kind, text[starts[first] : stop], starts[first], stop))
        assert entities == expected


@pytest.mark.parametrize("text", ["Ọ̀yọ́, ó dára", "آدم وَلَد", "ኢት፟ዮጵያ"])
def test_words_end_where_they_do_however_their_letters_were_typed(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    words = [[unicodedata.normalize("NFC", word) for word in _WORD.findall(one)] for one in forms]
    assert words[0] == words[1] == text.replace(",", " ,").split()


def test_long_texts_are_read_to_their_end(names):
    classifier = Classifier(names[0])
    text = " ".join(TEXTS)
    found = classifier.entities([text, TEXTS[0]])
    assert found[0][-1].end > len(text) - 100
    assert all(text[one.start : one.end] == one.text for one in found[0])
    assert found[1] == classifier.entities([TEXTS[0]])[0]
    assert classifier.entities([]) == []
    with pytest.raises(ValueError, match="this model tags words; call entities"):
        classifier.predict([text])


# Which model


def test_of_several_seeds_the_best_on_dev_is_taken(tokenizer, tmp_path):
    for seed, dev in ((0, 0.4), (2, 0.7), (10, 0.7)):
        save_tiny(tmp_path / f"seed-{seed}/model", tokenizer, seed=seed, dev=dev)
    classifier = Classifier(tmp_path)
    assert classifier.choice == "seed-2/model, of 3 seeds the best on dev (0.7000)"
    chosen = Classifier(tmp_path / "seed-2")
    assert chosen.choice is None
    assert classifier.predict(TEXTS[:3]) == chosen.predict(TEXTS[:3])
    (tmp_path / "seed-10/model" / CARD).write_text("{}")
    found = find_model(tmp_path)
    assert found.folder == tmp_path / "seed-0/model"
    assert found.choice == "seed-0/model, the first of 3 seeds"


def test_a_run_with_a_model_for_each_language_asks_for_the_language(tokenizer, tmp_path):
    for seed in (0, 1):
        for language in ("hau", "yor"):
            dev = 0.5 + 0.1 * seed * (language == "yor")
            save_tiny(tmp_path / f"seed-{seed}/{language}/model", tokenizer, seed=seed, dev=dev)
    assert find_model(tmp_path, "yo").folder == tmp_path / "seed-1/yor/model"
    assert find_model(tmp_path, "hau").folder == tmp_path / "seed-0/hau/model"
    assert find_model(tmp_path / "seed-1", "hau").folder == tmp_path / "seed-1/hau/model"
    for language in (None, "ibo"):
        with pytest.raises(
            ValueError, match=r"--language: got (none|ibo), but .* hau, yor; choose"
        ):
            Classifier(tmp_path, language=language)


def test_what_cannot_be_used_ends_with_one_clear_line(sentiment, tmp_path):
    folder, _ = sentiment
    (tmp_path / "empty").mkdir()
    classifier = Classifier(folder)
    cases = [
        (lambda: Classifier(tmp_path / "nowhere"), "--model: .*nowhere is not a folder"),
        (lambda: Classifier(tmp_path / "empty"), "--model: .*empty holds no fine-tuned model"),
        (lambda: Classifier(folder, batch_size=0), "batch_size: got 0"),
        (lambda: Classifier(folder, device="abacus"), "--device: got 'abacus'"),
        (lambda: classifier.predict("one text"), "texts: got one text, expected a list"),
        (lambda: classifier.predict(["a", " "]), r"texts\[1\]: empty text"),
        (lambda: classifier.predict(["a", 3]), r"texts\[1\]: .* is int"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_importing_comet_stays_quick():
    program = (
        "import comet, sys; assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert "Classifier" in comet.__all__
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        _ = comet.Clasifier
