import json

import torch
from safetensors.torch import load_file

from comet.bad_batches import save_bad_batch
from comet.batch import Batch


def batch_of(tokenizer, text, language):
    """One sequence whose second piece is hidden, then padding and padding alone."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    read, labels = ids.clone(), torch.full_like(ids, -100)
    read[1], labels[1] = tokenizer.mask_token_id, ids[1]
    pad = torch.full((3,), tokenizer.pad_token_id)
    rows = torch.cat([read, pad]), torch.full_like(torch.cat([read, pad]), tokenizer.pad_token_id)
    return Batch(
        input_ids=torch.stack(rows),
        mask=torch.stack(
            [rows[0] != tokenizer.pad_token_id, torch.zeros(len(rows[0]), dtype=torch.bool)]
        ),
        kd_positions=torch.tensor([1]),
        masked_positions=torch.tensor([1]),
        labels=torch.stack(
            [torch.cat([labels, torch.full((3,), -100)]), torch.full_like(rows[0], -100)]
        ),
        languages=torch.tensor([language, language]),
        tokens=len(ids),
        squared_lengths=len(ids) ** 2,
    )


def test_tensors_come_back_and_texts_can_be_read(tokenizer, tmp_path):
    pieces = [batch_of(tokenizer, "Yaro ya ci.", 0), batch_of(tokenizer, "Mata sun je kasuwa.", 1)]
    path = save_bad_batch(tmp_path, 12, pieces, tokenizer, process=1)
    assert path == tmp_path / "bad_batches" / "step-12-process-1.safetensors"
    saved = load_file(path)
    for number, piece in enumerate(pieces):
        for name in (
            "input_ids",
            "mask",
            "labels",
            "kd_positions",
            "masked_positions",
            "languages",
        ):
            assert torch.equal(saved[f"{number}/{name}"], getattr(piece, name))
    first, padding, second, _ = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (first["piece"], first["row"], first["language"]) == (0, 0, 0)
    assert first["original"] == "Yaro ya ci."
    assert tokenizer.mask_token in first["read"]
    assert tokenizer.pad_token not in first["read"]
    assert (padding["piece"], padding["row"]) == (0, 1)
    assert padding["read"] == padding["original"] == ""
    assert (second["piece"], second["language"], second["original"]) == (
        1,
        1,
        "Mata sun je kasuwa.",
    )


def test_unpadded_pieces_and_those_of_other_processes_stay_apart(tokenizer, tmp_path):
    padded = batch_of(tokenizer, "Yaro ya ci.", 0)
    whole = Batch(
        **{
            **vars(padded),
            "input_ids": padded.input_ids[:1, :-3],
            "labels": padded.labels[:1, :-3],
            "languages": padded.languages[:1],
            "mask": None,
        }
    )
    first, second = (save_bad_batch(tmp_path, 3, [whole], tokenizer, process=p) for p in (0, 1))
    assert first != second
    assert load_file(first)["0/mask"].all()
    assert json.loads(second.with_suffix(".json").read_text())[0]["original"] == "Yaro ya ci."
