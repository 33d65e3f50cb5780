"""Vocabularies as large as those of published models: XLM-R's 250,002 entries, multilingual BERT's 119,547."""

import gzip
import itertools
import json
import random

import pytest
import torch
from tiny import tiny_model
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from comet.trim import main

ALPHABETS = {
    "hau": "abdefghijklmnorstuwyzɓɗƙ",
    "amh": "ሀለሐመሠረሰሸቀበተቸኀነኘአከኸወዐዘዠየደጀገጠጨ",
    "yor": "abdeẹfghijklmnoọprsṣtuwy",
}
SIZE = 1500


def words(language, count):
    """Made-up ones, that no other language has."""
    draw = random.Random(language)
    mark = {"hau": "q", "amh": "ፐ", "yor": "v"}[language]
    found = {}
    while len(found) < count:
        found[mark + "".join(draw.choices(ALPHABETS[language], k=draw.randint(2, 8)))] = None
    return list(found)


def xlm_r(known):
    """The class that loads XLM-R, with a vocabulary as long as its own and `<mask>` last."""
    characters = sorted({one for word in known for one in word})
    taken = [*characters, "▁", *(f"▁{word}" for word in known)]
    fill = (f"▁{n:x}ẍ" for n in itertools.count())
    pieces = [*taken, *itertools.islice(fill, 250_001 - 4 - len(taken))]
    random.Random(0).shuffle(pieces)
    scores = [(piece, -9.0 if len(piece) > 1 else -15.0) for piece in pieces]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizer(vocab=[*special, *scores, ("<mask>", 0.0)])


def bert(known):
    """The class that loads BERT, with a vocabulary as long as that of the multilingual one."""
    characters = sorted({one for word in known for one in word})
    taken = [*characters, *(f"##{one}" for one in characters), *known]
    special = [
        "[PAD]",
        *(f"[unused{n}]" for n in range(1, 100)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    fill = (f"{n:x}ẍ" for n in itertools.count())
    pieces = [*special, *taken, *itertools.islice(fill, 119_547 - len(special) - len(taken))]
    return BertTokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)}, do_lower_case=False, strip_accents=False
    )


@pytest.mark.parametrize(("make", "architecture"), [(xlm_r, "xlm-r"), (bert, "bert")])
def test_a_vocabulary_of_published_size(make, architecture, tmp_path, capsys):
    vocabulary = {language: words(language, 20_000) for language in ALPHABETS}
    tokenizer = make([one for its in vocabulary.values() for one in its])
    entries = {"xlm-r": 250_002, "bert": 119_547}[architecture]
    assert len(tokenizer) == entries
    model = tiny_model(architecture, entries, hidden_size=8, num_hidden_layers=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for language, its in vocabulary.items():
        draw = random.Random(language)
        (tmp_path / "text" / language).mkdir(parents=True)
        # 400 words of each are used again and again, 3,000 now and then
        lines = [
            " ".join(
                [*draw.choices(its[:400], k=10), *(draw.choices(its[:3000], k=2) if n % 2 else [])]
            )
            for n in range(900)
        ]
        with gzip.open(tmp_path / "text" / language / "a.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": line}) + "\n" for line in lines)

    main(["--model", str(tmp_path / "model"), "--corpus", str(tmp_path / "text"), "--size", str(SIZE),
          "--output", str(tmp_path / "trimmed")])  # fmt: skip
    assert "the same logits, bit by bit" in capsys.readouterr().out
    report = json.loads((tmp_path / "trimmed/trim.json").read_text())
    assert report["entries"] == {"before": entries, "after": SIZE}
    assert report["proof"]["documents"] >= 20
    assert report["proof"]["sequences"] == 12
    for found in report["languages"].values():
        assert 0.9 < found["share"] < 1
        assert found["after"]["unknown_rate"] == 0
    small = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert isinstance(small, PreTrainedTokenizerFast)
    assert small.convert_ids_to_tokens(small.mask_token_id) == tokenizer.mask_token
    used = [its[0] for its in vocabulary.values()]
    masked = " ".join([*used, tokenizer.mask_token])
    assert small.convert_ids_to_tokens(small(masked).input_ids) == tokenizer.convert_ids_to_tokens(
        tokenizer(masked).input_ids
    )
    never = vocabulary["amh"][-1]  # in letters now, which were all kept
    assert len(tokenizer.tokenize(never)) == 1
    assert len(small.tokenize(never)) >= len(never)
    assert small.unk_token not in small.tokenize(never)
    old = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    new = AutoModelForMaskedLM.from_pretrained(tmp_path / "trimmed").eval()
    assert new.config.pad_token_id == small.pad_token_id
    assert new.get_input_embeddings().weight.shape == (SIZE, 8)
    kept = torch.tensor(tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(range(SIZE))))
    theirs = old(**tokenizer(masked, return_tensors="pt")).logits[..., kept]
    # of 250,002 columns at once, BLAS may sum in another order
    torch.testing.assert_close(
        new(**small(masked, return_tensors="pt")).logits, theirs, rtol=1e-6, atol=1e-6
    )
