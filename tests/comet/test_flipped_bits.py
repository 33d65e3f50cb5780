"""Of what is kept for other commands, any flipped bit is refused by name or changes nothing."""

import random
from pathlib import Path

import pytest
from tiny import TINY_RUN
from tiny_tasks import recipe_for
from tuned_models import save_tiny

from comet.cache_teacher import main as cache_teacher
from comet.configuration import build, parse_command
from comet.distill import SHORTCUTS
from comet.fine_tuned import find_model
from comet.floor import fit_floor, load_floor, save_floor
from comet.recipe import DistillRecipe
from comet.task_model import read_card
from comet.tasks import open_task
from comet.teacher_cache import CachedBatches, open_cache

FLIPS = 30  # of each file


def require_refused_or_same(file: Path, read, flips=FLIPS):
    """Read with single bits of a file flipped: one line that names a file, or what was read before."""
    before, expected = file.read_bytes(), read()
    chosen = random.Random(file.name)
    refused = 0
    for _ in range(flips):
        place, bit = chosen.randrange(len(before)), chosen.randrange(8)
        file.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
        where = f"{file.name}, byte {place}, bit {bit}: {before[max(0, place - 20) : place + 20]!r}"
        found = error = None
        try:
            found = read()
        except (ValueError, OSError) as raised:
            error = str(raised)
        if error is None:
            assert found == expected, where
        else:
            assert "\n" not in error.strip(), where
            assert file.parent.name in error, (where, error)
            refused += 1
    file.write_bytes(before)
    return refused


@pytest.fixture(scope="module")
def cache(teacher_folder, corpus_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped") / "cache"
    given = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]
    cache_teacher([*given, "--steps", "2", "--output", str(folder)])
    return folder


def read_cache(folder):
    """All that a run takes from a cache, in a form that can be compared."""
    given = parse_command(
        DistillRecipe,
        [*TINY_RUN, "--teacher-cache", str(folder)],
        program="test",
        description="",
        shortcuts=SHORTCUTS,
        default_recipe=lambda flags: None,
    )
    cache = open_cache(str(folder), build(DistillRecipe, given.content))
    batches = CachedBatches(cache, seed=0)
    read = [next(batches)[0].input_ids.tolist() for _ in range(2)]
    teacher = cache.teacher("float32").output_weight.sum().item()
    held_out = {name: len(found) for name, found in cache.held_out().items()}
    config, tokenizer = cache.config().to_dict(), cache.tokenizer()
    batches.close()
    return read, teacher, held_out, config, tokenizer.backend_tokenizer.to_str(), cache.index


@pytest.mark.parametrize(
    "name",
    ["index.json", "teacher/config.json", "teacher/tokenizer.json", "teacher/tokenizer_config.json",
     "head.safetensors", "held-out.safetensors", "steps-00000.safetensors"],
)  # fmt: skip
def test_in_a_teacher_cache(cache, name):
    assert require_refused_or_same(cache / name, lambda: read_cache(cache)) > FLIPS / 2


def test_in_a_cached_baseline(sentiment, tmp_path):
    recipe = recipe_for("tfidf", sentiment, languages=["hau"])
    train = open_task(recipe.task, "train")
    save_floor(fit_floor(train, 0.1), tmp_path / "floor.safetensors")

    def read():
        found = load_floor(train, tmp_path / "floor.safetensors")["hau"]
        return found.soft.tolist(), found.mixtures, found.soft_mixtures.tolist()

    assert require_refused_or_same(tmp_path / "floor.safetensors", read) > FLIPS / 2


def test_in_the_description_of_a_fine_tuned_model(tokenizer, tmp_path):
    save_tiny(tmp_path / "model", tokenizer)

    def read():
        return find_model(tmp_path), read_card(tmp_path / "model")

    assert require_refused_or_same(tmp_path / "model" / "comet.json", read) > FLIPS / 2
