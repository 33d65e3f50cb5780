"""What is stored comes back, pieces and rounds lose nothing, foreign and damaged caches are refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from accuracy import relative_rms
from tiny import TINY_RUN, tiny_model
from transformers import AutoTokenizer

from comet.batch import Batch, TeacherOutputs, piece_of
from comet.cache_files import batch_from, fingerprint_of_tokenizer, tensors_of
from comet.cache_teacher import main
from comet.configuration import build, parse_command
from comet.distill import SHORTCUTS
from comet.durable import sealed
from comet.recipe import DistillRecipe
from comet.teacher_cache import CachedBatches, complete, open_cache

STEPS = 5


def given(arguments):
    return parse_command(
        DistillRecipe,
        arguments,
        program="test",
        description="",
        shortcuts=SHORTCUTS,
        default_recipe=lambda flags: None,
    ).content


@pytest.fixture(scope="module")
def arguments(teacher_folder, corpus_folder):
    return ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), *TINY_RUN]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory):
    """A cache of two streams, in three files of steps."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comet.cache_writer.SHARD_BYTES", 30_000)
        main(
            [*arguments, "--corpus.streams", "2", "--batches", str(STEPS), "--output", str(folder)]
        )
    assert len(list(folder.glob("steps-*"))) == 3
    return folder


@pytest.fixture
def recipe(arguments, folder):
    cached = ["--teacher-cache", str(folder), "--corpus.streams", "2"]
    return build(DistillRecipe, given([*arguments, *cached]))


@pytest.fixture
def cache(folder, recipe):
    return open_cache(str(folder), recipe)


def padded_batch(top):
    """Three sequences of which some tokens are masked, and made-up words of a teacher."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([7, 3, 5])
    mask = torch.arange(7) < lengths[:, None]
    labels = torch.full((3, 7), -100)
    labels[0, 2] = labels[0, 5] = labels[2, 4] = 11
    positions = mask.flatten().nonzero()[:, 0]
    masked = (labels != -100).flatten().nonzero()[:, 0]
    pairs = mask[:, :, None] & mask[:, None, :]
    attention = torch.rand(3, 7, 7, generator=generator) * pairs
    values = torch.randn(15, 4, generator=generator).sort(-1, descending=True).values
    pieces = torch.randint(120, (15, 4), generator=generator)
    hidden = None if top else torch.randn(15, 8, generator=generator)
    said = TeacherOutputs(attention, hidden, (values, pieces, values[:, 3]) if top else None)
    return Batch(
        input_ids=torch.randint(5, 120, (3, 7), generator=generator).masked_fill(~mask, 1),
        mask=mask,
        kd_positions=positions,
        masked_positions=masked,
        labels=labels,
        languages=torch.tensor([1, 0, 1]),
        tokens=15,
        squared_lengths=int((lengths**2).sum()),
        teacher=said,
    )


def assert_same(actual, expected):
    for name in ("input_ids", "kd_positions", "masked_positions", "labels", "languages"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
        assert getattr(actual, name).dtype == torch.int64
    assert actual.counts == expected.counts
    masks = [
        torch.ones_like(one.labels).bool() if one.mask is None else one.mask
        for one in (actual, expected)
    ]
    assert torch.equal(*masks)


@pytest.mark.parametrize("kd_tokens", ["all", "masked"])
@pytest.mark.parametrize("top", [False, True])
def test_a_stored_batch_comes_back(top, kd_tokens):
    batch = padded_batch(top)
    if kd_tokens == "masked":
        batch = replace(batch, kd_positions=batch.masked_positions)
    found = batch_from(tensors_of(batch, batch.teacher), kd_tokens)
    assert_same(found, batch)
    padding = batch.teacher.attention_map == 0
    assert not found.teacher.attention_map[padding].any()
    assert relative_rms(found.teacher.attention_map, batch.teacher.attention_map) <= 3e-4
    if not top:
        assert relative_rms(found.teacher.hidden, batch.teacher.hidden) <= 4e-3
        return
    values, pieces, tail = found.teacher.top
    largest = batch.teacher.top[0][:, :1]
    assert relative_rms(values, batch.teacher.top[0] - largest) <= 3e-4
    assert torch.equal(pieces.long(), batch.teacher.top[1])
    assert torch.equal(tail, batch.teacher.top[2])


@pytest.mark.parametrize("top", [False, True])
def test_pieces_of_a_batch_hold_all_of_it_once(top):
    batch = padded_batch(top)
    pieces = [piece_of(batch, slice(start, None, 2)) for start in range(2)]
    assert [sum(counts) for counts in zip(*(one.counts for one in pieces), strict=True)] == list(
        batch.counts
    )
    for number, piece in enumerate(pieces):
        rows = torch.arange(3)[number::2]
        assert torch.equal(piece.input_ids, batch.input_ids[rows])
        assert torch.equal(piece.languages, batch.languages[rows])
        assert torch.equal(piece.kd_positions, piece.mask.flatten().nonzero()[:, 0])
        assert torch.equal(piece.masked_positions, (piece.labels != -100).flatten().nonzero()[:, 0])
        assert torch.equal(piece.teacher.attention_map, batch.teacher.attention_map[rows])
        kept = torch.isin(batch.kd_positions // 7, rows)
        if top:
            assert all(
                map(torch.equal, piece.teacher.top, (part[kept] for part in batch.teacher.top))
            )
        else:
            assert torch.equal(piece.teacher.hidden, batch.teacher.hidden[kept])


def rows_of(pieces):
    """Sequences and what the teacher said to them, in an order of their own."""
    rows = []
    for piece in pieces:
        for number, ids in enumerate(piece.input_ids):
            alone = piece_of(piece, slice(number, number + 1))
            rows.append(
                (ids.tolist(), alone.teacher.hidden.float().sum().item(), alone.labels.sum().item())
            )
    return sorted(rows)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (2, 2), (4, 1)])
def test_processes_and_accumulation_change_only_the_slices(cache, processes, accumulation):
    whole = CachedBatches(cache, seed=0)
    shares = [
        CachedBatches(cache, seed=0, accumulation=accumulation, process=number, processes=processes)
        for number in range(processes)
    ]
    for _ in range(STEPS + 2):
        pieces = [piece for share in shares for piece in next(share)]
        assert rows_of(pieces) == rows_of(next(whole))


def test_too_many_pieces_are_refused(cache):
    with pytest.raises(
        ValueError, match="accumulation: got 3 in 4 processes, but a batch of the cache has 4"
    ):
        CachedBatches(cache, seed=0, accumulation=3, process=0, processes=4)
    with pytest.raises(ValueError, match="streams"):
        CachedBatches(cache, seed=0, processes=3)


def test_rounds_after_the_first_are_shuffled_and_whole(cache):
    batches = CachedBatches(cache, seed=0)
    rounds = [[rows_of(next(batches)) for _ in range(STEPS)] for _ in range(4)]
    assert rounds[0] == [rows_of(cache.step(number)) for number in range(STEPS)]
    assert all(sorted(one) == sorted(rounds[0]) for one in rounds)
    assert len({str(one) for one in rounds}) > 2
    other = CachedBatches(cache, seed=1)
    assert [[rows_of(next(other)) for _ in range(STEPS)] for _ in range(4)] != rounds


@pytest.mark.parametrize("taken", [0, 3, STEPS, 2 * STEPS + 1])
def test_the_position_is_restored(cache, taken):
    batches = CachedBatches(cache, seed=0)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(batches.state_dict()))
    again = CachedBatches(cache, seed=0)
    next(again)
    again.load_state_dict(state)
    for _ in range(STEPS):
        assert rows_of(next(again)) == rows_of(next(batches))


FOREIGN = {
    "corpus.max_length": ("corpus", "max_length", 16),
    "corpus.mask_probability": ("corpus", "mask_probability", 0.2),
    "corpus.sampling_temperature": ("corpus", "sampling_temperature", 2.0),
    "corpus.streams": ("corpus", "streams", 1),
    "optimisation.batch_size": ("optimisation", "batch_size", 16),
    "optimisation.batch_tokens": ("optimisation", "batch_tokens", 512),
    "objective.kd_tokens": ("objective", "kd_tokens", "masked"),
    "teacher.attention_layer": ("teacher", "attention_layer", 1),
    "run.seed": ("run", "seed", 3),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_cache_made_for_another_recipe_is_refused(folder, recipe, name):
    part, field, value = FOREIGN[name]
    other = replace(recipe, **{part: replace(getattr(recipe, part), **{field: value})})
    with pytest.raises(
        ValueError, match=f"made for something else: {name} is .* there, {value!r} here"
    ):
        open_cache(str(folder), other)


def test_what_is_the_students_own_may_differ(folder, recipe):
    other = replace(
        recipe,
        student=replace(recipe.student, layers=1),
        objective=replace(recipe.objective, alpha=0.9, temperature=3.0, attention_loss="mse"),
        optimisation=replace(recipe.optimisation, learning_rate=1e-3, steps=9, accumulation=2),
    )
    assert open_cache(str(folder), other).steps == STEPS


def test_another_teacher_tokenizer_or_text_is_refused(
    folder, recipe, tmp_path, teacher_folder, corpus_folder
):
    same = tmp_path / "same"
    shutil.copytree(teacher_folder, same)
    moved = replace(recipe, teacher=replace(recipe.teacher, model=str(same)))
    open_cache(str(folder), moved)
    pieces = AutoTokenizer.from_pretrained(same)
    pieces.add_tokens(["neologism"])
    pieces.save_pretrained(same)
    with pytest.raises(ValueError, match=r"its tokenizer is not that of .*same"):
        open_cache(str(folder), moved)
    torch.manual_seed(8)
    tiny_model("xlm-r", 300).save_pretrained(same)
    with pytest.raises(ValueError, match=r"its teacher's weights are not those of .*same"):
        open_cache(str(folder), moved)
    shutil.copytree(corpus_folder, tmp_path / "text")
    with (tmp_path / "text" / "hau" / "text.txt").open("a") as file:
        file.write("\nWani sabon layi ne wannan.")
    with pytest.raises(ValueError, match=r"its text is not that of .*text"):
        open_cache(
            str(folder),
            replace(recipe, corpus=replace(recipe.corpus, paths=[str(tmp_path / "text")])),
        )


def test_a_cache_needs_neither_teacher_nor_text(folder):
    content = complete(given(["--teacher-cache", str(folder), "--student.layers", "2"]))
    assert content["corpus"]["max_length"] == 24
    recipe = build(DistillRecipe, content)
    assert recipe.teacher.model is None
    assert recipe.corpus.paths == []
    cache = open_cache(str(folder), recipe)
    assert cache.languages == ("hau", "swa")
    assert cache.config().num_hidden_layers == 4
    assert len(cache.tokenizer()) == 300
    assert {language: len(some) for language, some in cache.held_out().items()} == {
        "hau": 1,
        "swa": 1,
    }
    assert cache.teacher("float32").output_weight.shape == (300, 32)


def test_what_is_given_beside_a_cache_must_agree_with_it(folder):
    with pytest.raises(ValueError, match=r"corpus.max_length is 24 there, 16 here"):
        complete(given(["--teacher-cache", str(folder), "--corpus.max_length", "16"]))
    agreeing = given(["--teacher-cache", str(folder), "--corpus.max_length", "24"])
    assert complete(agreeing)["run"]["seed"] == 0
    without = given(["--corpus.max_length", "16"])
    assert complete(without) == without


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_damaged_file_is_recognised(folder, recipe, tmp_path):
    copy = copied(folder, tmp_path)
    shard = copy / "steps-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    batches = CachedBatches(open_cache(str(copy), recipe), seed=0)
    next(batches)
    with pytest.raises(
        ValueError, match=r"steps-00000.safetensors is damaged \(its checksum differs"
    ):
        batches.close()
    shard.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"steps-00000.safetensors is damaged \(has \d+ bytes"):
        open_cache(str(copy), recipe)
    shard.unlink()
    with pytest.raises(ValueError, match=r"steps-00000.safetensors is damaged \(is missing"):
        open_cache(str(copy), recipe)


def test_a_sound_cache_passes_its_checks(cache):
    batches = CachedBatches(cache, seed=0)
    for _ in range(STEPS):
        next(batches)
    batches.close()


def test_no_cache_and_another_format_are_refused(folder, recipe, tmp_path):
    with pytest.raises(ValueError, match="holds no teacher cache"):
        open_cache(str(tmp_path), recipe)
    copy = copied(folder, tmp_path)
    index = json.loads((copy / "index.json").read_text())
    newer = {**index, "format": 99, "comet": "7.0"}
    (copy / "index.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"has format 99, written by Comet 7\.0; .* update it"):
        open_cache(str(copy), recipe)
    begun = {name: value for name, value in index.items() if name != "sha256"}
    begun |= {"complete": False, "steps": 40}
    (copy / "index.json").write_text(json.dumps(sealed(begun)))
    with pytest.raises(
        ValueError, match="holds 5 of 40 steps; start the command that made it again"
    ):
        open_cache(str(copy), recipe)


def test_relations_need_more_than_a_cache_holds(arguments, folder):
    relation = ["--teacher-cache", str(folder), "--objective.attention_loss", "relation"]
    content = given([*arguments[:4], *relation])
    with pytest.raises(ValueError, match=r"objective.attention_loss: got relation"):
        build(DistillRecipe, content)


def test_a_tokenizers_fingerprint_survives_its_use(tokenizer):
    before = fingerprint_of_tokenizer(tokenizer)
    tokenizer(["a b c"], truncation=True, max_length=2, padding=True)
    assert fingerprint_of_tokenizer(tokenizer) == before


def test_speed_up(cache):
    teacher = cache.teacher_tokens_per_second
    assert cache.speed_up(3 * teacher) == pytest.approx(4)
    assert cache.bytes_per_token > 32 * 2
    assert str(cache.folder) in cache.describe()
