"""Trimming a vocabulary: text whose pieces were all kept is read as before, whatever the kind of tokenizer."""

import itertools
import json
import shutil
import unicodedata

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from tiny_tasks import recipe_for, write_sentiment
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from comet import Classifier
from comet import trim as trimming
from comet.corpus import open_corpus
from comet.finetune import finetune
from comet.task_model import read_card
from comet.toy import LANGUAGES, toy_sentences
from comet.trim import main, trim
from comet.vocabulary import Vocabulary, count_pieces

TEXTS = {language: toy_sentences(language, 300) for language in LANGUAGES}


def bpe():
    """As RoBERTa's: letters that stand for bytes, special tokens first and last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for its in TEXTS.values() for text in its), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def wordpiece():
    """As BERT's: special tokens in the middle, so that their numbers change."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator((text for its in TEXTS.values() for text in its), trainer)
    learnt = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[1:]
    order = [
        "[PAD]",
        *(f"[unused{n}]" for n in range(20)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *learnt,
    ]
    ids = {piece: number for number, piece in enumerate(order)}
    tokenizer.model = models.WordPiece(ids, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        unk_token="[UNK]", mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="module", params=["unigram", "bpe", "wordpiece"])
def source(request):
    if request.param == "unigram":
        return request.getfixturevalue("tokenizer")
    return {"bpe": bpe, "wordpiece": wordpiece}[request.param]()


def chosen(source, size):
    """Old and new tokenizer, and what was kept."""
    vocabulary = Vocabulary(source)
    counts = count_pieces(source, {name: texts[:200] for name, texts in TEXTS.items()})
    choice = vocabulary.choose(counts, size=size)
    return vocabulary.only(choice.kept), choice


def test_text_whose_pieces_were_all_kept_has_the_same_ids_one_to_one(source):
    size = len(source) - 90
    trimmed, choice = chosen(source, size)
    assert len(choice.kept) == len(trimmed) == size
    new = {int(old): number for number, old in enumerate(choice.kept)}
    words = [word for texts in TEXTS.values() for text in texts[200:] for word in text.split()]
    same = changed = 0
    for text in [*words, *(" ".join(pair) for pair in itertools.pairwise(words))]:
        before, after = source(text).input_ids, trimmed(text).input_ids
        if set(before) <= set(new):
            assert after == [new[one] for one in before]
            same += 1
        else:
            changed += 1
        assert trimmed.decode(after, skip_special_tokens=True).strip() == (
            source.decode(before, skip_special_tokens=True).strip()
        )
    assert min(same, changed) > 100


def test_added_tokens_keep_their_flags_and_special_ones_their_roles(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    more = AutoTokenizer.from_pretrained(tmp_path)
    more.add_special_tokens(
        {"extra_special_tokens": [AddedToken("<hau>", rstrip=True, special=True), "<yor>"]}
    )
    more.add_tokens([AddedToken("@user", single_word=True, normalized=False), "<url>"])
    more.add_special_tokens({"sep_token": "<sep>"})
    more.split_special_tokens = True
    more.save_pretrained(tmp_path)
    source = AutoTokenizer.from_pretrained(tmp_path, language_token="<lang>")
    trimmed, _ = chosen(source, len(source) - 90)
    trimmed.save_pretrained(tmp_path / "trimmed")
    for one in (trimmed, AutoTokenizer.from_pretrained(tmp_path / "trimmed")):
        assert one.special_tokens_map == source.special_tokens_map
        assert one.extra_special_tokens == source.extra_special_tokens == ["<hau>", "<yor>"]
        assert set(one.all_special_tokens) == set(source.all_special_tokens)
        assert one.split_special_tokens == source.split_special_tokens
        assert flags(one) == flags(source)
        assert one.tokenize("@user sannu<hau> <url>") == source.tokenize("@user sannu<hau> <url>")


def flags(tokenizer):
    added = json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]
    return {one.pop("content"): {**one, "id": None} for one in added}


def test_special_tokens_keep_their_roles(source):
    trimmed, choice = chosen(source, len(source) - 90)
    assert trimmed.special_tokens_map == source.special_tokens_map
    names = trimmed.convert_ids_to_tokens(trimmed("a").input_ids)
    assert names == source.convert_ids_to_tokens(source("a").input_ids)
    assert set(source.all_special_ids) <= set(choice.kept.tolist())
    assert trimmed.model_max_length == source.model_max_length


def test_every_language_keeps_its_share_and_no_piece_more(source):
    vocabulary = Vocabulary(source)
    counts = count_pieces(source, TEXTS)
    loose, tight = (vocabulary.choose(counts, coverage=share) for share in (0.9, 0.97))
    assert min(loose.shares.values()) >= 0.9
    assert min(tight.shares.values()) >= 0.97
    assert min(loose.shares.values()) < 0.97
    assert len(loose.kept) < len(tight.kept) < len(source)
    everything = vocabulary.choose(counts, coverage=1.0)
    assert list(everything.shares.values()) == pytest.approx([1.0] * len(LANGUAGES))


def test_letters_are_counted_as_they_were_typed_and_composed(tokenizer):
    typed = [unicodedata.normalize("NFD", text) for text in TEXTS["yor"]]
    composed = [unicodedata.normalize("NFC", text) for text in TEXTS["yor"]]
    assert typed != composed
    source = bpe()
    counts, own = (count_pieces(source, {"yor": its})["yor"] for its in (typed, composed))
    assert (counts[own > 0] > 0).all()
    with_nfc, without = (count_pieces(tokenizer, {"yor": its})["yor"] for its in (typed, composed))
    assert (with_nfc == without).all()  # its tokenizer composes by itself: nothing counts twice


def test_languages_count_alike_however_much_text_there_is_of_each(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    counts = count_pieces(tokenizer, {name: TEXTS[name] for name in ("hau", "yor")})
    more = {"hau": counts["hau"] * 1000, "yor": counts["yor"]}
    assert (
        vocabulary.choose(counts, size=150).kept == vocabulary.choose(more, size=150).kept
    ).all()


def test_the_pairs_that_a_kept_piece_is_joined_from_are_kept_too():
    source = bpe()
    trimmed, choice = chosen(source, 400)
    state = json.loads(trimmed.backend_tokenizer.to_str())["model"]
    joined = {left + right for left, right in state["merges"]}
    long = {piece for piece in state["vocab"] if len(piece) > 1 and not piece.startswith("<")}
    assert long
    assert long <= joined
    assert len(choice.kept) <= 400


def saved(tokenizer, folder, architecture):
    torch.manual_seed(1)
    model = tiny_model(architecture, len(tokenizer) + 3)  # rows that no entry has
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("unigram", "xlm-r"),
        ("unigram", "modernbert"),
        ("wordpiece", "bert"),
        ("wordpiece", "electra"),
    ],
)
def test_the_logits_are_the_same_bit_by_bit(request, tmp_path, kind, architecture, capsys):
    tokenizer = request.getfixturevalue("tokenizer") if kind == "unigram" else wordpiece()
    folder = saved(tokenizer, tmp_path / "model", architecture)
    size = len(tokenizer) - 90
    main(["--model", str(folder), "--corpus", "toy", "--size", str(size), "--documents", "300",
          "--output", str(tmp_path / "trimmed")])  # fmt: skip
    assert "the same logits, bit by bit" in capsys.readouterr().out
    report = json.loads((tmp_path / "trimmed/trim.json").read_text())
    assert report["entries"] == {"before": len(tokenizer), "after": size}
    assert report["proof"]["sequences"] > 0
    old = AutoModelForMaskedLM.from_pretrained(folder).eval()
    new = AutoModelForMaskedLM.from_pretrained(tmp_path / "trimmed").eval()
    trimmed = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert new.config.vocab_size == len(trimmed) == size
    assert new.config.pad_token_id == trimmed.pad_token_id
    ids = trimmed(TEXTS["swa"][:4], padding=True, return_tensors="pt").input_ids
    kept = torch.tensor(
        [tokenizer.get_vocab()[one] for one in trimmed.convert_ids_to_tokens(range(size))]
    )
    mask = (ids != trimmed.pad_token_id).long()
    expected = old(kept[ids], attention_mask=mask).logits[..., kept]
    torch.testing.assert_close(new(ids, attention_mask=mask).logits, expected, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in new.parameters()) == report["parameters"]["after"]


def test_a_tokenizer_that_reads_otherwise_is_found_out(teacher_folder, tmp_path, monkeypatch):
    right = Vocabulary.only

    def wrong(self, kept):
        trimmed = right(self, kept)
        trimmed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        return trimmed

    monkeypatch.setattr(Vocabulary, "only", wrong)
    with pytest.raises(ValueError, match="trimming its tokenizer changes how a text of"):
        trim(str(teacher_folder), toy(), tmp_path / "trimmed", size=250)
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuned_model_predicts_the_same_and_says_how_small_it_is(teacher_folder, tmp_path):
    data = write_sentiment(tmp_path / "data", ("hau",))
    finetune(recipe_for(teacher_folder, data, languages=["hau"], epochs=1), tmp_path / "run")
    folder = tmp_path / "run/seed-0/model"
    texts = [line.split("\t")[0] for line in (data / "hau/dev.tsv").read_text().splitlines()[1:]]
    (tmp_path / "text.txt").write_text("\n".join(dict.fromkeys(texts)), encoding="utf-8")
    corpus = open_corpus(
        [str(data.parent / "text.txt")],
        languages=["und"],
        temperature=1.0,
        seed=0,
        held_out_per_language=8,
    )
    report = trim(str(folder), corpus, tmp_path / "trimmed", coverage=1.0)
    assert report["proof"]["identical"]
    old, new = Classifier(str(folder)), Classifier(str(tmp_path / "trimmed"))
    assert [one.label for one in old.predict(texts)] == [one.label for one in new.predict(texts)]
    before, after = (read_card(one).size for one in (folder, tmp_path / "trimmed"))
    assert after["encoder_parameters"] == before["encoder_parameters"]
    assert after["parameters"] < before["parameters"]


def toy():
    return open_corpus(["toy"], temperature=1.0, seed=0, held_out_per_language=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--size", "3"],
            "single characters of the text are kept in any case",
        ),
        (["--size", "300"], "--size: got 300, but the vocabulary has 300 entries; give fewer"),
        (["--coverage", "1.5"], "--coverage: got 1.5, expected above 0 and at most 1"),
        ([], "--size: give either --size or --coverage"),
        (["--size", "250", "--coverage", "0.9"], "--size: give either --size or --coverage"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_written(teacher_folder, tmp_path, given, message):
    with pytest.raises(ValueError, match=r".") as raised:
        main(["--model", str(teacher_folder), "--corpus", "toy", "--documents", "50",
              "--output", str(tmp_path / "trimmed"), *given])  # fmt: skip
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused_before_the_corpus_is_read(
    tokenizer, tmp_path, monkeypatch
):
    tiny_model("xlm-r", len(tokenizer) - 2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(trimming, "count_pieces", None)
    entries = f"{len(tokenizer):,} entries, the model embeds {len(tokenizer) - 2:,}"
    with pytest.raises(ValueError, match=f"--model: the tokenizer has {entries}"):
        trim(str(tmp_path / "model"), toy(), tmp_path / "trimmed", size=400)
    assert not (tmp_path / "trimmed").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(teacher_folder, tmp_path, number):
    source = tmp_path / "model"
    shutil.copytree(teacher_folder, source)
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("output.dense.weight"))
    weights[name].view(-1)[0] = number
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"--model: .* of {name} are not finite"):
        trim(str(source), toy(), tmp_path / "trimmed", coverage=0.9)
    assert not (tmp_path / "trimmed").exists()


@pytest.mark.parametrize("architectures", [None, ["XLMRobertaForMaskedLM"]])
def test_what_weights_a_configuration_without_architectures_has_is_seen(
    teacher_folder, tmp_path, architectures
):
    source = tmp_path / "model"
    shutil.copytree(teacher_folder, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    report = trim(str(source), toy(), tmp_path / "trimmed", coverage=0.9)
    assert report["entries"]["after"] < report["entries"]["before"]
    assert report["parameters"]["after"] < report["parameters"]["before"]
    assert report["proof"]["identical"]
    trimmed = AutoModelForMaskedLM.from_pretrained(tmp_path / "trimmed")
    assert trimmed.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "trimmed"))


def test_text_in_a_script_that_the_tokenizer_does_not_know_is_refused(teacher_folder, tmp_path):
    (tmp_path / "text/amh").mkdir(parents=True)
    lines = "\n".join(f"ሰላም ለዓለም {'አ' * n} ነው" for n in range(1, 40))
    (tmp_path / "text/amh/a.txt").write_text(lines, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"pieces of amh are unknown to the tokenizer, which does not"
    ):
        main(["--model", str(teacher_folder), "--corpus", str(tmp_path / "text"), "--size", "200",
              "--output", str(tmp_path / "trimmed")])  # fmt: skip
    assert not (tmp_path / "trimmed").exists()


def test_a_folder_that_is_there_is_not_overwritten(teacher_folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match=r"--output: .*mine exists; name another folder"):
        trim(str(teacher_folder), toy(), tmp_path / "mine", size=250)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_before_the_corpus_is_read(
    teacher_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(trimming, "count_pieces", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--output: .*file is a file, so .*below cannot be made"):
        trim(str(teacher_folder), toy(), tmp_path / "file/new/below", size=250)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"--output: .* is not writable; name another folder"):
        trim(str(teacher_folder), toy(), tmp_path / "new", size=250)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_failure_on_the_way_leaves_nothing(teacher_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(trimming, "_prove", fail)
    with pytest.raises(OSError, match="No space left"):
        trim(str(teacher_folder), toy(), tmp_path / "trimmed", size=250)
    assert list(tmp_path.iterdir()) == []
