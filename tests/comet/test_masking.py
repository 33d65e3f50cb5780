import numpy as np
import pytest
import torch

from comet.batches import IGNORED_LABEL, Masking, evaluation_batches, tokenise
from comet.corpus import open_corpus
from comet.toy import toy_sentences


def same(one, other):
    return torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)


def test_masking_is_berts(tokenizer):
    masking = Masking(tokenizer, 0.15, "masked", seed=0)
    pieces = np.random.default_rng(0).integers(4, len(tokenizer) - 1, size=(64, 200))
    sequences = [[0, *row.tolist(), 2] for row in pieces]
    batch = masking.collate(sequences, 0)
    chosen = batch.labels != IGNORED_LABEL
    original = torch.tensor(sequences)
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert not chosen[:, 0].any()
    assert not chosen[:, -1].any()
    assert torch.equal(batch.labels[chosen], original[chosen])
    assert torch.equal(batch.input_ids[~chosen], original[~chosen])
    masked = batch.input_ids[chosen] == tokenizer.mask_token_id
    kept = batch.input_ids[chosen] == original[chosen]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(batch.masked_positions, chosen.flatten().nonzero().flatten())
    assert torch.equal(batch.kd_positions, batch.masked_positions)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.kd_positions.dtype == torch.int64


def test_all_real_tokens_are_matched_and_the_masked_ones_known(tokenizer):
    sequences = [[0, *range(4, 60), 2], [0, 9, 8, 2]]
    batch = Masking(tokenizer, 0.5, "all", 0).collate(sequences, 0, language=3)
    assert torch.equal(batch.kd_positions, batch.mask.flatten().nonzero().flatten())
    chosen = (batch.labels != IGNORED_LABEL).flatten().nonzero().flatten()
    assert torch.equal(batch.masked_positions, chosen)
    assert 0 < len(chosen) < len(batch.kd_positions) == 62
    assert batch.languages.tolist() == [3, 3]


def test_probability_zero_leaves_the_text_as_it_is(tokenizer):
    batch = Masking(tokenizer, 0.0, "all", 0).collate([[0, 9, 8, 2], [0, 7, 2]], 0)
    assert batch.input_ids.tolist() == [[0, 9, 8, 2], [0, 7, 2, tokenizer.pad_token_id]]
    assert (batch.labels == IGNORED_LABEL).all()
    assert batch.mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert batch.kd_positions.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch.masked_positions.tolist() == []
    assert (batch.tokens, batch.squared_lengths) == (7, 25)


def test_a_batch_without_padding_has_no_mask(tokenizer):
    assert Masking(tokenizer, 0.15, "all", 0).collate([[0, 9, 2], [0, 8, 2]], 0).mask is None


def test_other_seeds_and_other_numbers_mask_other_tokens(tokenizer):
    sequences = [[0, *range(4, 200), 2]] * 4
    choices = [
        Masking(tokenizer, 0.15, "all", seed).collate(sequences, number).labels
        for seed, number in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])


def test_a_long_document_becomes_several_sequences(tokenizer):
    text = "Malami ya koya wa dalibai lissafi a makaranta jiya. " * 10
    cut = tokenise(tokenizer, [text], 24)
    assert len(cut) > 3
    assert all(len(ids) <= 24 and ids[0] == 0 and ids[-1] == 2 for ids in cut)
    whole = tokenise(tokenizer, [text], 10_000)[0]
    assert [piece for ids in cut for piece in ids[1:-1]] == whole[1:-1]
    assert tokenise(tokenizer, [text], 24, cut=False) == cut[:1]


def test_pieces_are_what_transformers_gives_and_the_tokenizer_stays_as_it_was(tokenizer):
    texts = [*toy_sentences("yor", 30), *toy_sentences("kin", 30), "x" * 500]
    before = tokenizer.backend_tokenizer.to_str()
    found = tokenise(tokenizer, texts, 16)
    assert tokenizer.backend_tokenizer.to_str() == before
    expected = tokenizer(texts, truncation=True, max_length=16, return_overflowing_tokens=True)[
        "input_ids"
    ]
    assert found == expected
    assert tokenizer(texts[-1])["input_ids"] == tokenise(tokenizer, texts[-1:], 1000)[0]


def test_evaluation_batches_are_the_same_every_time(corpus_folder, tokenizer):
    corpus = open_corpus([str(corpus_folder)], temperature=1.0, seed=3, held_out_per_language=8)
    texts = corpus.held_out()["swa"]
    masking = Masking(tokenizer, 0.15, "masked", 0)
    one, two = (evaluation_batches(texts, masking, 4, 24, language=1) for _ in range(2))
    assert sum(len(b.input_ids) for b in one) == len(texts)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert all(set(b.languages.tolist()) == {1} for b in one)
