import json
import math
import shutil

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from comet.adapt import MaskedLanguageModel, WarmStart, main, make_model
from comet.batches import Masking
from comet.corpus import open_corpus
from comet.entropy import piece_entropy
from comet.processes import make_accelerator
from comet.recipe import AdaptRecipe, CorpusRecipe, ModelRecipe, OptimisationRecipe, WarmStartRecipe
from comet.tap import TappedEncoder, usable_positions
from comet.tokenizers import train_tokenizer
from comet.toy import LANGUAGES, toy_sentences

SMALL = [
    "--model.layers", "1",
    "--model.hidden_size", "16",
    "--model.heads", "2",
    "--model.intermediate_size", "24",
    "--model.vocabulary_size", "200",
    "--model.positions", "40",
    "--corpus.max_length", "24",
    "--corpus.held_out", "8",
    "--warm_start.steps", "3",
    "--warm_start.max_length", "12",
    "--warm_start.batch_size", "16",
    "--optimisation.warmup_steps", "1",
    "--batch-size", "8",
    "--steps", "6",
    "--run.log_every", "2",
    "--run.checkpoint_every", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def adapted(corpus_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    main(["--corpus", str(corpus_folder), *SMALL, "--output", str(folder)])
    return folder


def test_a_teacher_from_scratch_has_the_recipes_shape_and_a_tokenizer(adapted):
    model = AutoModelForMaskedLM.from_pretrained(adapted / "model")
    tokenizer = AutoTokenizer.from_pretrained(adapted / "model")
    assert model.config.vocab_size == len(tokenizer) == 200
    assert model.config.hidden_size == 16
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 199]) == [
        "<s>", "<pad>", "</s>", "<unk>", "<mask>",
    ]  # fmt: skip
    text = "Malami ya koya wa ɗalibai."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    held_out = json.loads((adapted / "held_out.json").read_text())
    assert held_out["loss"].keys() == {"hau", "swa", "all"}
    assert held_out["entropy_given_language"] < held_out["entropy"]


def test_a_modernbert_reads_small_letters_attends_to_all_and_can_be_tapped(corpus_folder, tmp_path):
    folder = tmp_path / "modern"
    main(
        [
            "--corpus", str(corpus_folder), "--model.architecture", "modernbert", *SMALL,
            "--model.layers", "2", "--model.dropout", "0.1", "--model.lowercase",
            "--output", str(folder),
        ]
    )  # fmt: skip
    read = AutoTokenizer.from_pretrained(folder / "model")
    assert read("MALAMI Ƙarami").input_ids == read("malami ƙarami").input_ids
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert model.config.model_type == "modernbert"
    assert set(model.config.layer_types) == {"full_attention"}
    assert model.config.mlp_dropout == model.config.embedding_dropout == 0.1
    assert usable_positions(model) == 40
    assert TappedEncoder(model, 0)(torch.full((1, 40), 7), None).query.shape == (1, 2, 40, 8)


def test_a_checkpoint_goes_on_training(adapted, corpus_folder, tmp_path):
    folder = tmp_path / "more"
    main(
        [
            "--model", str(adapted / "model"), "--corpus", str(corpus_folder),
            *SMALL[12:], "--warm_start.steps", "0", "--output", str(folder),
        ]
    )  # fmt: skip
    before, after = (
        json.loads((path / "held_out.json").read_text())["loss"]["all"]
        for path in (adapted, folder)
    )
    assert after < before


def test_a_checkpoint_without_a_head_gets_one(tokenizer, corpus_folder, tmp_path):
    config = tiny_model("xlm-r", len(tokenizer)).config
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    main(
        [
            "--model", str(tmp_path / "headless"), "--corpus", str(corpus_folder),
            *SMALL[12:], "--steps", "2", "--warm_start.steps", "0", "--output", str(tmp_path / "run"),
        ]
    )  # fmt: skip
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_an_interrupted_run_resumes_to_the_same_model(
    adapted, corpus_folder, tmp_path, monkeypatch
):
    forward, calls = MaskedLanguageModel.forward, 0

    def interrupted(self, *given):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return forward(self, *given)

    monkeypatch.setattr(MaskedLanguageModel, "forward", interrupted)
    # training a tokenizer again could round some score differently
    same = ["--tokenizer", str(adapted / "tokenizer")]
    with pytest.raises(KeyboardInterrupt):
        main(["--corpus", str(corpus_folder), *SMALL, *same, "--output", str(tmp_path / "run")])
    monkeypatch.undo()
    main(["--resume", "--output", str(tmp_path / "run")])
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (adapted / name).read_bytes()


@pytest.mark.parametrize("steps", ["1", "9"])
def test_a_rate_that_is_far_too_high_ends_with_one_line(corpus_folder, tmp_path, steps):
    rate = ["--optimisation.learning_rate", "1e30", "--optimisation.warmup_steps", "0"]
    output = ["--steps", steps, "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=r"training diverged: .* step \d.*lower learning rate"):
        main(["--corpus", str(corpus_folder), *SMALL, *rate, *output])
    assert not (tmp_path / "model").exists()


def test_a_finished_run_is_done_and_more_steps_extend_it(adapted, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    before = (run / "run.json").read_bytes()
    main(["--resume", "--output", str(run)])
    assert (
        "has done its 6 steps; for more, python -m comet.adapt --resume" in capsys.readouterr().out
    )
    assert (run / "run.json").read_bytes() == before
    main(["--resume", "--output", str(run), "--steps", "8"])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() != (adapted / weights).read_bytes()


def test_the_loss_is_cross_entropy_on_the_masked_tokens(tokenizer):
    model = tiny_model("xlm-r", len(tokenizer))
    batch = Masking(tokenizer, 0.4, "masked", 0).collate([[0, *range(4, 30), 2], [0, 9, 8, 2]], 0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.mask.long()).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    loss = MaskedLanguageModel(TappedEncoder(model))(batch).total
    torch.testing.assert_close(loss, expected)


def test_piece_entropies_are_those_of_the_counts(tmp_path, tokenizer):
    """Two languages of equal size that share no piece: knowing the language halves the choice."""
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in range(4, len(tokenizer) - 1)]
    words = sorted({p[1:] for p in pieces if p.startswith("▁") and len(p) > 3})[:8]
    for language, some in (("hau", words[:4]), ("swa", words[4:])):
        (tmp_path / language).mkdir()
        lines = [f"{a} {b} {c} {d}" for a in some for b in some for c in some for d in some]
        (tmp_path / language / "t.txt").write_text("\n".join(lines))
    corpus = open_corpus([str(tmp_path)], temperature=1.0, seed=0, held_out_per_language=4)
    entropy = piece_entropy(corpus, tokenizer, 24)
    assert entropy.single - entropy.given_language == pytest.approx(math.log(2), abs=0.02)


def test_short_sequences_come_first_and_the_position_is_restored(corpus_folder, tokenizer):
    recipe = AdaptRecipe(
        ModelRecipe(positions=64),
        CorpusRecipe(paths=[str(corpus_folder)], max_length=24, workers=0),
        WarmStartRecipe(steps=3, max_length=12, batch_size=16, mask_probability=0.6),
        OptimisationRecipe(steps=6, batch_size=8, warmup_steps=0),
    )
    corpus = open_corpus([str(corpus_folder)], temperature=1.0, seed=0, held_out_per_language=4)
    masking = Masking(tokenizer, 0.15, "masked", 0)
    for stop in range(6):
        batches = WarmStart(corpus, masking, recipe, make_accelerator("float32"))
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(batches.state_dict()))
        expected = [next(batches) for _ in range(6 - stop)]
        again = WarmStart(corpus, masking, recipe, make_accelerator("float32"))
        again.load_state_dict(state)
        for number, (batch,) in enumerate(expected, start=stop):
            (same,) = next(again)
            assert torch.equal(same.input_ids, batch.input_ids)
            most = 16 if number < 3 else 8
            assert most - 2 <= len(batch.input_ids) <= most
            assert batch.input_ids.shape[1] <= (12 if number < 3 else 24)
            masked = len(batch.masked_positions) / batch.tokens
            assert 0.3 < masked < 0.65 if number < 3 else masked < 0.25


def test_a_vocabulary_larger_than_the_text_gives_is_refused(corpus_folder, tmp_path):
    with pytest.raises(ValueError, match=r"vocabulary_size: got 90000, .* gives only"):
        main(
            [
                "--corpus", str(corpus_folder), *SMALL,
                "--model.vocabulary_size", "90000", "--output", str(tmp_path / "run"),
            ]
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_nobody_asked_for_is_as_large_as_the_text_gives(
    corpus_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("comet.adapt.VOCABULARY_SIZE", 90000)
    corpus = open_corpus([str(corpus_folder)], temperature=1.0, seed=0, held_out_per_language=8)
    recipe = AdaptRecipe(
        ModelRecipe(layers=1, hidden_size=16, heads=2, intermediate_size=24, positions=40),
        CorpusRecipe(paths=[str(corpus_folder)], max_length=24),
    )
    model, tokenizer = make_model(recipe, corpus, None)
    assert model.config.vocab_size == len(tokenizer) < 90000
    line = f"model.vocabulary_size: the corpus yields {len(tokenizer):,} pieces, not 90,000"
    assert line in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"model\.vocabulary_size: got 0"):
        ModelRecipe(vocabulary_size=0)


def test_a_given_tokenizer_keeps_its_own_rule():
    with pytest.raises(ValueError, match=r"model\.lowercase: got True, expected nothing"):
        ModelRecipe(tokenizer="somewhere", lowercase=True)


def test_nothing_masked_is_refused():
    with pytest.raises(ValueError, match="mask_probability"):
        AdaptRecipe(corpus=CorpusRecipe(paths=["toy"], mask_probability=0.0))


def test_a_warm_start_longer_than_the_positions_is_refused(corpus_folder, tmp_path):
    with pytest.raises(ValueError, match=r"warm_start\.max_length: got 41, .* positions for 40"):
        main(
            [
                "--corpus", str(corpus_folder), *SMALL,
                "--warm_start.max_length", "41", "--output", str(tmp_path / "run"),
            ]
        )  # fmt: skip


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(corpus_folder, tmp_path):
    with pytest.raises(ValueError, match=r"model\.vocabulary_size: got 5"):
        main(
            [
                "--corpus", str(corpus_folder), *SMALL,
                "--model.vocabulary_size", "5", "--output", str(tmp_path / "run"),
            ]
        )  # fmt: skip


@pytest.mark.parametrize(("sentences", "size"), [(60, 300), (300, 700)])
def test_the_same_text_in_any_order_gives_the_same_tokenizer(sentences, size):
    texts = [text for language in LANGUAGES for text in toy_sentences(language, sentences)]
    trained = [train_tokenizer(one, size, 64) for one in (texts, texts, texts[::-1])]
    first, second, reversed_ = (one.backend_tokenizer.to_str() for one in trained)
    assert first == second == reversed_
