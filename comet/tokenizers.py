"""A Unigram tokenizer trained on a corpus, laid out as XLM-R's: `<s> <pad> </s> <unk>` first, `<mask>` last.

Text is put into Unicode normal form C, so that Yoruba's tone marks or Igbo's dots count as one letter however they
were typed, and split at spaces, which stay visible as "▁" (Kudo, 2018).
"""

import json
from collections.abc import Iterable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
_ADDED = 1e-4  # between the scores of characters that the trainer would have left out
_TOLERANCE = 1e-6  # of that distance, by which its sums may be off
_DIGITS = 5  # of a score, beyond which its last bits do not reach


def train_tokenizer(
    texts: Iterable[str],
    vocabulary_size: int,
    max_length: int,
    *,
    lowercase: bool = False,
    or_fewer: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a Unigram tokenizer; the same texts in whatever order give the same one.

    Args:
        texts: documents.
        vocabulary_size: entries, special tokens included.
        max_length: what the tokenizer gives as the model's longest sequence.
        lowercase: read capitals as small letters.
        or_fewer: take as many as the text yields, where those are fewer.

    Raises:
        ValueError: the text has fewer distinct pieces than asked for.
    """
    tokenizer = Tokenizer(models.Unigram())
    letters = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence(
        [*letters, normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size - 1,  # the mask token is added behind the pieces
        special_tokens=list(SPECIAL_TOKENS),
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the trainer raises no other type
        raise ValueError(f"model.vocabulary_size: got {vocabulary_size}: {error}") from error
    if tokenizer.get_vocab_size() < vocabulary_size - 1 and not or_fewer:
        raise ValueError(
            f"model.vocabulary_size: got {vocabulary_size}, but the corpus gives only "
            f"{tokenizer.get_vocab_size() + 1} pieces; lower it to that or give more text"
        )
    tokenizer.model = _canonical(tokenizer.model)
    tokenizer.add_special_tokens([AddedToken(MASK_TOKEN, lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=MASK_TOKEN,
        model_max_length=max_length,
    )


def _canonical(trained: models.Unigram) -> models.Unigram:
    """The same vocabulary for the same text: tokens in alphabetical order, special ones first, scores rounded.

    The trainer takes words and characters in the order of hash tables, another one each time. Sums over words then
    differ in their last bits, and characters that would have been left out get 0.0001 more than the one before each.
    """
    vocabulary = json.loads(trained.__getstate__())["vocab"]
    special, learnt = vocabulary[: len(SPECIAL_TOKENS)], dict(vocabulary[len(SPECIAL_TOKENS) :])
    lowest = min(learnt.values())
    added = sorted(
        token
        for token, score in learnt.items()
        if len(token) == 1
        and abs((score - lowest) / _ADDED - round((score - lowest) / _ADDED)) < _TOLERANCE
    )
    scores = sorted(learnt[token] for token in added)
    learnt |= dict(zip(added, scores, strict=True))
    ordered = [(token, round(score, _DIGITS)) for token, score in sorted(learnt.items())]
    tokens = [(token, score) for token, score in special] + ordered
    return models.Unigram(tokens, unk_id=SPECIAL_TOKENS.index("<unk>"))
