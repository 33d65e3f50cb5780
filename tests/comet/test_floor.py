"""What TF-IDF teaches a model that is fine-tuned."""

import numpy as np
from tiny_tasks import LABELS, write_sentiment

from comet.floor import fit_floor, load_floor, mixed, save_floor
from comet.tasks import TaskRecipe, open_task


def test_a_mixture_is_the_first_half_of_one_text_and_the_second_of_another():
    texts = ["a b c d e", "f g", "h"]
    found = mixed(texts, 200)
    assert set(found) == {
        f"{first} {second}" for first in ("a b c", "f", "h") for second in ("c d e", "g", "h")
    }
    assert mixed(texts, 200) == found
    assert mixed(texts, 0) == []


def test_every_language_gets_as_many_mixtures_and_all_are_labelled(tmp_path):
    folder = write_sentiment(tmp_path / "hau", ("hau",), {"train": 200})
    (write_sentiment(tmp_path / "swa", ("swa",), {"train": 40}) / "swa").rename(folder / "swa")
    recipe = TaskRecipe(task="afrisenti", data=str(folder), languages=["hau", "swa"])
    train = open_task(recipe, "train")
    found = fit_floor(train, 0.5)
    for language, count in (("hau", 200), ("swa", 40)):
        one = found[language]
        assert one.soft.shape == (count, len(LABELS))
        assert one.soft_mixtures.shape == (len(one.mixtures), len(LABELS)) == (60, len(LABELS))
        for rows in (one.soft, one.soft_mixtures):
            assert np.allclose(rows.sum(1), 1, atol=1e-6)
    hau = found["hau"]
    labels = np.array([example.label for example in train.splits["hau"]])
    assert (
        np.mean(hau.soft.argmax(1) == labels) > 0.6
    )  # five in six can be known, from the first words
    save_floor(found, tmp_path / "floor.safetensors")
    again = load_floor(train, tmp_path / "floor.safetensors")
    assert again["swa"].mixtures == found["swa"].mixtures
    assert (again["swa"].soft_mixtures == found["swa"].soft_mixtures).all()
    assert fit_floor(train, 0.0)["swa"].soft_mixtures.shape == (0, len(LABELS))
