import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_tasks import rows_for
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from comet.masking import IGNORED_LABEL
from comet.task_batches import TaskBatches, collate, encode, prediction_batches
from comet.tasks import Example
from comet.toy import toy_sentences


def texts(tokenizer):
    words = ["Ina son wannan fim", "sana", "ninapenda filamu hii sana sana sana sana", "Fim"]
    return [
        Example(text, number % 3, "swa" if number % 2 else "hau", number)
        for number, text in enumerate(words)
    ]


def test_texts_are_cut_off_and_labelled_at_their_first_token(tokenizer):
    rows = encode(texts(tokenizer), tokenizer, 8, ["hau", "swa"])
    for row, example in zip(rows, texts(tokenizer), strict=True):
        expected = tokenizer(example.text, truncation=True, max_length=8).input_ids
        assert list(row.ids) == expected
        assert (list(row.positions), list(row.labels)) == ([0], [example.label])
    assert [row.language for row in rows] == [0, 1, 0, 1]
    assert max(len(row.ids) for row in rows) == 8


@pytest.mark.parametrize("max_length", [5, 9, 64])
def test_every_word_is_labelled_once_at_its_first_piece_however_long_the_sentence(
    tokenizer, max_length
):
    words = ("Amina", "ta", "tafi", "Kano", "ninapendawewesanasanasana", "\u200b", "fim", "sosai")
    tags = tuple(range(len(words)))
    example = Example(words, tags, "hau", 1)
    rows = encode([example, example], tokenizer, max_length)
    first = [row for row in rows if row.example == 0]
    assert [row.example for row in rows] == [0] * len(first) + [1] * len(first)
    labels = list(itertools.chain.from_iterable(row.labels for row in first))
    items = list(itertools.chain.from_iterable(row.items for row in first))
    assert labels == items
    spoken = [
        number
        for number, word in enumerate(words)
        if tokenizer(word, add_special_tokens=False).input_ids
    ]
    assert items == spoken
    specials = tokenizer("").input_ids
    for row in first:
        assert len(row.ids) <= max_length
        assert [row.ids[0], row.ids[-1]] == specials
        for item, position in zip(row.items, row.positions, strict=True):
            pieces = tokenizer(words[item], add_special_tokens=False).input_ids
            room = max_length - len(specials)
            assert list(row.ids[position : position + min(len(pieces), room)]) == pieces[:room]
    if max_length == 64:
        assert len(first) == 1


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=False),  # as RoBERTa's and ModernBERT's
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        pre_tokenizers.BertPreTokenizer(),
    ],
    ids=["byte-level", "byte-level, prefixed", "split", "metaspace", "metaspace, bare", "bert"],
)
def test_words_given_one_by_one_are_read_as_in_running_text(pre_tokenizer):
    sentences = toy_sentences("hau", 60)
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    words = [tuple(sentence.rstrip(".").split()) for sentence in sentences]
    examples = [Example(its, tuple(range(len(its))), "hau", 1) for its in words]
    rows = encode(examples, tokenizer, 512)
    for row, its in zip(rows, words, strict=True):
        assert row.ids == tokenizer(" ".join(its)).input_ids
        assert row.items == list(range(len(its)))
        starts = [row.positions[0], *row.positions[1:], len(row.ids) - 1]
        for word, (start, end) in zip(its, itertools.pairwise(starts), strict=True):
            alone = tokenizer(f"{word} {word}", add_special_tokens=False).input_ids
            assert row.ids[start:end] == alone[-(end - start) :] or start == 1


def test_a_batch_pads_to_its_longest_row_and_marks_what_is_labelled():
    rows = rows_for("token", 5)
    batch = collate(rows, padding=1)
    assert batch.input_ids.shape[1] == max(len(row.ids) for row in rows)
    for line, row in enumerate(rows):
        length = len(row.ids)
        assert batch.input_ids[line, :length].tolist() == list(row.ids)
        assert (batch.input_ids[line, length:] == 1).all()
        assert batch.mask[line].tolist() == [place < length for place in range(batch.mask.shape[1])]
        assert batch.labels[line][list(row.positions)].tolist() == list(row.labels)
    assert (batch.labels != IGNORED_LABEL).sum() == sum(len(row.labels) for row in rows)
    assert (
        batch.masked_positions.tolist()
        == (batch.labels.flatten() != IGNORED_LABEL).nonzero()[:, 0].tolist()
    )
    assert batch.counts == (
        sum(len(row.ids) for row in rows),
        sum(len(row.ids) ** 2 for row in rows),
        10,
        10,
    )
    assert collate([rows[0], rows[0]], padding=1).mask is None


def test_soft_labels_stay_with_their_rows():
    rows = [
        replace(row, soft=np.full(3, float(number)))
        for number, row in enumerate(rows_for("sequence", 40))
    ]
    number_of = {tuple(row.ids): number for number, row in enumerate(rows)}
    for pieces in steps_of(TaskBatches(rows, 1, batch_size=8, seed=0, accumulation=2), 5):
        for piece in pieces:
            ids = [tuple(line[line != 1].tolist()) for line in piece.input_ids]
            assert piece.soft_labels.dtype == torch.float32
            assert piece.soft_labels[:, 1].tolist() == [number_of[one] for one in ids]
    assert collate(rows_for("sequence", 3), padding=1).soft_labels is None


def steps_of(batches, count):
    return [next(batches) for _ in range(count)]


def rows_seen(pieces):
    return sorted(tuple(line[line != 1].tolist()) for piece in pieces for line in piece.input_ids)


def test_an_epoch_reads_every_row_once_in_another_order_each_time_and_pads_little():
    rows = rows_for("sequence", 203)
    batches = TaskBatches(rows, 1, batch_size=16, seed=4)
    assert batches.steps_per_epoch == 13
    epochs = [steps_of(batches, 13) for _ in range(2)]
    everything = sorted(tuple(row.ids) for row in rows)
    for epoch in epochs:
        assert rows_seen(itertools.chain.from_iterable(epoch)) == everything
        sizes = [len(piece.input_ids) for (piece,) in epoch]
        assert max(sizes) - min(sizes) <= 1
        padding = sum(piece.input_ids.numel() - piece.tokens for (piece,) in epoch)
        assert padding < 0.05 * sum(piece.tokens for (piece,) in epoch)
        widths = [piece.input_ids.shape[1] for (piece,) in epoch]
        assert widths != sorted(widths)
        assert widths != sorted(widths, reverse=True)
    assert not torch.equal(epochs[0][0][0].input_ids, epochs[1][0][0].input_ids)


def test_a_saved_position_goes_on_with_the_same_batches_across_epochs():
    rows = rows_for("sequence", 40)
    batches = TaskBatches(rows, 1, batch_size=8, seed=1)
    steps_of(batches, 8)
    state = batches.state_dict()
    expected = steps_of(batches, 9)
    again = TaskBatches(rows, 1, batch_size=8, seed=1)
    again.load_state_dict(state)
    for ours, theirs in zip(steps_of(again, 9), expected, strict=True):
        assert torch.equal(ours[0].input_ids, theirs[0].input_ids)


def test_processes_and_pieces_share_a_step_without_changing_it():
    rows = rows_for("token", 33)
    (whole,) = next(TaskBatches(rows, 1, batch_size=12, seed=2))
    pieces = [
        piece
        for process in range(2)
        for piece in next(
            TaskBatches(
                rows, 1, batch_size=12, seed=2, accumulation=2, process=process, processes=2
            )
        )
    ]
    assert len(pieces) == 4
    assert rows_seen(pieces) == rows_seen([whole])
    assert sum(len(piece.masked_positions) for piece in pieces) == len(whole.masked_positions)


def test_more_pieces_than_rows_are_refused():
    with pytest.raises(
        ValueError, match=r"optimisation\.accumulation: got 4 on 2 processes, expected at most 5"
    ):
        TaskBatches(rows_for("sequence", 5), 1, batch_size=8, seed=0, accumulation=4, processes=2)


def test_predictions_read_every_row_once():
    rows = rows_for("sequence", 21)
    found = list(prediction_batches(rows, 1, 8))
    assert sorted(row.example for chosen, _ in found for row in chosen) == list(range(21))
    assert [len(chosen) for chosen, _ in found] == [8, 8, 5]
