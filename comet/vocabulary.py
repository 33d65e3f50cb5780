"""Which entries of a vocabulary some text needs, and a tokenizer of those alone.

Text all of whose pieces were kept is cut into the same pieces as before, whatever was dropped:

- Unigram takes the best of all segmentations (Kudo, 2018): the best of more is still the best of fewer. What an unknown
  character costs follows from the lowest score there is, so the piece that has it is kept.
- WordPiece takes the longest piece that fits: no longer one has come.
- BPE joins the pair of the lowest rank again and again (Sennrich et al., 2016). With every merge kept whose two parts
  and result are kept, and with the parts of every kept piece kept in turn, the same pairs are joined in the same order.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from comet.corpus.documents import composed

_BATCH = 1000  # texts that are tokenised at once
_MODELS = ("Unigram", "BPE", "WordPiece")


@dataclass(frozen=True)
class Choice:
    """The entries to keep.

    Attributes:
        kept: `[N]` int64, old ids in ascending order; the new id is the place here.
        special: how many are special or added tokens, or bytes.
        characters: how many are single characters.
        shares: language → the share of its pieces that is kept.
    """

    kept: np.ndarray
    special: int
    characters: int
    shares: dict[str, float]


def count_pieces(
    tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Iterable[str]]
) -> dict[str, np.ndarray]:
    """How often each entry occurs.

    A text that is not in Unicode normal form C, and that the tokenizer reads otherwise in it, counts in both forms:
    people type either.

    Args:
        tokenizer: a fast one; truncation and padding are turned off.
        texts: of each language; they are read once, a thousand at a time.

    Returns:
        Language → `[V]` int64.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    entries = (
        max(tokenizer.get_vocab().values()) + 1
    )  # more than there are where numbers are left out
    found = {}
    for language, its in texts.items():
        counts = np.zeros(entries, dtype=np.int64)
        for batch in _batches(its):
            read = _ids(backend, batch)
            typed = [place for place, text in enumerate(batch) if composed(text) != text]
            for place, ids in zip(
                typed, _ids(backend, [composed(batch[place]) for place in typed]), strict=True
            ):
                if ids != read[place]:
                    read.append(ids)
            found_ids = np.fromiter(itertools.chain.from_iterable(read), dtype=np.int64)
            counts += np.bincount(found_ids, minlength=entries)
        found[language] = counts
    return found


def _ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Vocabulary:
    """The entries of a fast tokenizer, and how they depend on each other.

    Args:
        tokenizer: with a Unigram, BPE or WordPiece model.

    Raises:
        ValueError: a model of another kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        model = self.state["model"]
        self.kind = model.get("type") or (
            "WordPiece" if "max_input_chars_per_word" in model else "BPE"
        )
        if self.kind not in _MODELS:
            raise ValueError(
                f"--model: its tokenizer is a {self.kind} one, expected {', '.join(_MODELS)}"
            )
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.pieces = [""] * (max(self.ids.values()) + 1)
        for piece, number in self.ids.items():
            self.pieces[number] = piece

    def __len__(self) -> int:
        return len(self.pieces)

    def required(self) -> set[int]:
        """Special and added tokens, the bytes that unknown characters are written as, a Unigram model's least piece."""
        found = set(self.tokenizer.all_special_ids)
        found |= {int(token["id"]) for token in self.state["added_tokens"]}
        model = self.state["model"]
        if model.get("unk_id") is not None:
            found.add(int(model["unk_id"]))
        if isinstance(model.get("unk_token"), str) and model["unk_token"] in self.ids:
            found.add(self.ids[model["unk_token"]])
        if self.kind == "Unigram":
            found.add(
                min(range(len(model["vocab"])), key=lambda one: float(model["vocab"][one][1]))
            )
        if model.get("byte_fallback"):
            found |= {self.ids[f"<0x{n:02X}>"] for n in range(256) if f"<0x{n:02X}>" in self.ids}
        if _is_byte_level(self.state):
            found |= {self.ids[letter] for letter in _byte_letters() if letter in self.ids}
        return found

    def characters(self, used: Iterable[int]) -> set[int]:
        """Entries that are one character, of those that the used pieces are made of."""
        model = self.state["model"]
        prefix = model.get("continuing_subword_prefix") or ""
        suffix = model.get("end_of_word_suffix") or ""
        required = self.required()
        letters = set("".join(self.pieces[one] for one in used if one not in required))
        forms = {form for one in letters for form in (one, prefix + one, one + suffix)}
        return {self.ids[form] for form in forms if form in self.ids}

    def parts(self) -> dict[int, list[tuple[int, int]]]:
        """Of a BPE model, which pairs are joined to a piece."""
        found: dict[int, list[tuple[int, int]]] = {}
        if self.kind == "BPE":
            for left, right in _pairs(self.state["model"]["merges"]):
                joined = self.ids.get(self._joined(left, right))
                if joined is not None:
                    found.setdefault(joined, []).append((self.ids[left], self.ids[right]))
        return found

    def _joined(self, left: str, right: str) -> str:
        prefix = self.state["model"].get("continuing_subword_prefix") or ""
        return left + (right[len(prefix) :] if prefix and right.startswith(prefix) else right)

    def choose(
        self,
        counts: Mapping[str, np.ndarray],
        *,
        size: int | None = None,
        coverage: float | None = None,
    ) -> Choice:
        """The entries that the text of all languages needs most, each language counting alike.

        Args:
            counts: language → `[V]`, of `count_pieces`.
            size: how many entries to keep, those included that are kept in any case.
            coverage: or else, the share of its pieces that each language is to keep, in (0, 1].

        Raises:
            ValueError: fewer than are kept in any case, or more than there are.
        """
        shares = {
            language: found / max(found.sum(), 1) for language, found in sorted(counts.items())
        }
        mean = np.mean(list(shares.values()), axis=0)
        used = np.flatnonzero(mean)
        required = self.required()
        characters = self.characters(used) - required
        kept = required | characters
        parts = self.parts()
        for one in sorted(kept):
            kept |= _with_parts(one, parts, kept)
        if size is not None:
            self._require_size(size, len(required), len(characters), len(kept))
        covered = {language: float(its[list(kept)].sum()) for language, its in shares.items()}
        for one in used[np.argsort(-mean[used], kind="stable")].tolist():
            if size is not None and len(kept) >= size:
                break
            if coverage is not None and min(covered.values()) >= coverage - 1e-12:
                break
            if one in kept:
                continue
            new = _with_parts(one, parts, kept)
            if size is not None and len(kept) + len(new) > size:
                continue  # its parts do not fit any more; another's may
            kept |= new
            for language, its in shares.items():
                covered[language] += float(its[list(new)].sum())
        ids = np.array(sorted(kept), dtype=np.int64)
        return Choice(
            kept=ids,
            special=len(required),
            characters=len(characters),
            shares={language: float(its[ids].sum()) for language, its in shares.items()},
        )

    def _require_size(self, size: int, special: int, characters: int, least: int) -> None:
        if size < least:
            raise ValueError(
                f"--size: got {size:,}, expected {least:,} or more: {special:,} special tokens and "
                f"{characters:,} single characters of the text are kept in any case"
            )
        if size >= len(self):
            raise ValueError(
                f"--size: got {size:,}, but the vocabulary has {len(self):,} entries; give fewer"
            )

    def only(self, kept: np.ndarray) -> PreTrainedTokenizerFast:
        """A tokenizer of these entries, numbered in their old order.

        Args:
            kept: `[N]` old ids, ascending.
        """
        new = {int(old): number for number, old in enumerate(kept)}
        state: dict[str, Any] = json.loads(json.dumps(self.state))
        state["truncation"] = state["padding"] = None
        state["added_tokens"] = [
            token | {"id": new[int(token["id"])]} for token in state["added_tokens"]
        ]
        if state["post_processor"] is not None:
            _renumber(state["post_processor"], new)
        model = state["model"]
        if self.kind == "Unigram":
            vocabulary = model["vocab"]
            model["vocab"] = [vocabulary[old] for old in kept.tolist() if old < len(vocabulary)]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[int(model["unk_id"])]
        else:
            model["vocab"] = {
                piece: new[old] for piece, old in model["vocab"].items() if old in new
            }
        if self.kind == "BPE":
            names = model["vocab"]
            model["merges"] = [
                [left, right]
                for left, right in _pairs(model["merges"])
                if left in names and right in names and self._joined(left, right) in names
            ]
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(state)),
            model_max_length=self.tokenizer.model_max_length,
            padding_side=self.tokenizer.padding_side,
            truncation_side=self.tokenizer.truncation_side,
            model_input_names=self.tokenizer.model_input_names,
            clean_up_tokenization_spaces=self.tokenizer.clean_up_tokenization_spaces,
            split_special_tokens=self.tokenizer.split_special_tokens,
            extra_special_tokens=self.tokenizer.extra_special_tokens,
            **self.tokenizer.special_tokens_map,
        )


def _with_parts(
    one: int, parts: Mapping[int, Sequence[tuple[int, int]]], kept: set[int]
) -> set[int]:
    """A piece, and of what it is joined, as far as that is not kept yet."""
    found: set[int] = set()
    waiting = [one]
    while waiting:
        piece = waiting.pop()
        if piece in found or (piece in kept and piece != one):
            continue
        found.add(piece)
        waiting += [part for pair in parts.get(piece, ()) for part in pair]
    return found - kept


def _pairs(merges: Sequence[Any]) -> Iterable[tuple[str, str]]:
    """Merges as pairs, which older files write as one string."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    """Whether text is written in letters that stand for bytes before it is cut, as by GPT-2's tokenizer."""
    return '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["normalizer"]])


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in byte-level tokenizers."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def _renumber(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    """Put new ids into what adds special tokens."""
    for inner in processor.get("processors", ()):
        _renumber(inner, new)
    for name in ("sep", "cls"):  # BertProcessing, RobertaProcessing
        if name in processor:
            processor[name] = [processor[name][0], new[int(processor[name][1])]]
    if isinstance(processor.get("special_tokens"), dict):  # TemplateProcessing
        for token in processor["special_tokens"].values():
            token["ids"] = [new[int(number)] for number in token["ids"]]
