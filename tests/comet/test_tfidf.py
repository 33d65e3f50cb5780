import json
import shutil
import unicodedata

import numpy as np
import pytest
from real_data import DATA, needs_real_data
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from comet.tasks import TaskRecipe, open_task
from comet.tfidf import TfidfModel, cross_fitted, is_tfidf
from comet.toy import toy_sentences
from comet.tuned_runs import weights_fingerprint

LABELS = ("hausa", "igbo", "swahili")
TEXTS = [text for language in ("hau", "ibo", "swa") for text in toy_sentences(language, 40)]
NUMBERS = [number for number in range(3) for _ in range(40)]


def fitted(labels=LABELS):
    return TfidfModel(labels, ["hau"]).fit(TEXTS, NUMBERS)


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2)])
def test_probabilities_are_those_of_scikit_learn(kept):
    texts, numbers = zip(
        *[pair for pair in zip(TEXTS, NUMBERS, strict=True) if pair[1] in kept], strict=True
    )
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True
    )
    regression = LogisticRegression(C=4, max_iter=1000)
    regression.fit(vectorizer.fit_transform(texts), numbers)
    asked = [*TEXTS[::7], "zzz", ""]
    found = TfidfModel(LABELS).fit(texts, numbers).predict_proba(asked)
    expected = regression.predict_proba(vectorizer.transform(asked))
    np.testing.assert_allclose(found[:, kept], expected, rtol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (np.delete(found, kept, axis=1) == 0).all()


def test_a_loaded_model_says_exactly_the_same_and_files_hold_no_code(tmp_path):
    model = fitted()
    model.save(tmp_path / "model")
    loaded = TfidfModel.load(tmp_path / "model")
    assert (loaded.labels, loaded.languages) == (LABELS, ("hau",))
    assert loaded.parameters == model.parameters > 1000
    assert (loaded.predict_proba(TEXTS) == model.predict_proba(TEXTS)).all()
    assert loaded.predict_proba([]).shape == (0, 3)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"tfidf.json", "vocabulary.json", "tfidf.safetensors"}
    assert is_tfidf(tmp_path / "model")
    loaded.save(tmp_path / "again")
    for name in names:
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "model" / name).read_bytes()


def test_it_learns_and_fitting_twice_gives_the_same():
    found = fitted().predict_proba(TEXTS)
    assert np.mean(found.argmax(1) == NUMBERS) > 0.95
    assert (fitted().predict_proba(TEXTS) == found).all()


def test_a_text_is_labelled_by_models_that_have_not_seen_it():
    """Labels are put on at random: whoever has seen a text knows its label, whoever has not cannot."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh"), 30)) for _ in range(120)]
    labels = random.integers(3, size=120).tolist()
    seen = TfidfModel(LABELS).fit(texts, labels).predict_proba(texts)
    found, models = cross_fitted(texts, labels, LABELS)
    assert len(models) == 4
    assert found.shape == (120, 3)
    assert np.allclose(found.sum(1), 1)
    assert np.mean(seen.argmax(1) == labels) > 0.95
    assert np.mean(found.argmax(1) == labels) < 0.5
    assert (cross_fitted(texts, labels, LABELS)[0] == found).all()
    with pytest.raises(ValueError, match="tfidf: got 3 texts, expected 4 or more to cross-fit"):
        cross_fitted(texts[:3], labels[:3], LABELS)


def test_what_cannot_be_fitted_or_loaded_ends_with_one_clear_line(tmp_path):
    model = TfidfModel(LABELS)
    cases = [
        (lambda: model.predict_proba(["a"]), "tfidf: the model is not fitted"),
        (lambda: model.save(tmp_path / "x"), "tfidf: the model is not fitted"),
        (lambda: model.fit(["ab", "cd"], [1, 1]), "2 texts, all labelled .*; expected two"),
        (lambda: model.fit(["ab", "cd"], [0, 1, 1]), "2 texts and 3 labels"),
        (lambda: model.fit(["ab", "cd"], [0, 1]), "no sequence of characters occurs in 2 of the 2"),
        (lambda: TfidfModel.load(tmp_path), "--model: .* holds no TF-IDF model"),
    ]
    fitted().save(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "nan")
    weights = load_file(tmp_path / "nan/tfidf.safetensors")
    weights["bias"][0] = float("nan")
    save_file(weights, tmp_path / "nan/tfidf.safetensors")
    cases.append((lambda: TfidfModel.load(tmp_path / "nan"), "numbers of bias are not finite"))
    (tmp_path / "model/vocabulary.json").write_text(json.dumps(["ab", "cd"]))
    cases.append((lambda: TfidfModel.load(tmp_path / "model"), "holds no TF-IDF model"))
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_answer_does_not_depend_on_how_letters_were_typed(tmp_path):
    texts = [text for language in ("yor", "ibo") for text in toy_sentences(language, 60)]
    labels = [0] * 60 + [1] * 60
    forms = {form: [unicodedata.normalize(form, text) for text in texts] for form in ("NFC", "NFD")}
    assert sum(map(len, forms["NFD"])) > sum(map(len, forms["NFC"])) + 100
    composed, decomposed = (TfidfModel(LABELS).fit(its, labels) for its in forms.values())
    decomposed.save(tmp_path / "model")
    expected = composed.predict_proba(forms["NFC"])
    for model in (composed, decomposed, TfidfModel.load(tmp_path / "model")):
        for its in forms.values():
            assert (model.predict_proba(its) == expected).all()


def test_a_model_that_reads_texts_otherwise_is_refused_also_where_its_answers_are_known(tmp_path):
    fitted().save(tmp_path / "model")
    settings = json.loads((tmp_path / "model/tfidf.json").read_text())
    (tmp_path / "model/tfidf.json").write_text(json.dumps({**settings, "format": 1}))
    for use in (TfidfModel.load, weights_fingerprint):
        with pytest.raises(ValueError, match=r"--model: .* format 1, expected 2.* remove it"):
            use(tmp_path / "model")


@needs_real_data
def test_swahili_tweets_on_dev():
    recipe = TaskRecipe(data=str(DATA / "afrisenti"))
    train, dev = (open_task(recipe, split, ["swa"]).splits["swa"] for split in ("train", "dev"))
    model = TfidfModel(("negative", "neutral", "positive"))
    model.fit([one.text for one in train], [one.label for one in train])
    predicted = model.predict_proba([one.text for one in dev]).argmax(1)
    score = f1_score([one.label for one in dev], predicted, average="weighted")
    assert score == pytest.approx(0.5509, abs=0.005)
