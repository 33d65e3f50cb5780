"""`python -m comet.trim`: a model and its tokenizer without the vocabulary that a corpus does not need.

    python -m comet.trim --model T --corpus TEXT --size 32000 --output runs/trimmed
    python -m comet.trim --model T --corpus TEXT --coverage 0.9995 --output runs/trimmed

Special tokens and single characters stay, and of the other pieces those that the languages of the corpus use most, each
language counting alike, however much text there is of it. Weights are copied, not changed: on text whose pieces were
all kept, the trimmed model gives the same logits, bit by bit, if those of the entries that went are not computed
either (in a product with more columns, BLAS may sum in another order). That is tried on text that counted for nothing,
and what is tokenised otherwise now is reported.

Trim a teacher before it is distilled: the student then shares its small vocabulary, and every KL is cheaper by as much.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from comet.card import carry
from comet.configuration import CommandParser, items_of, run_command
from comet.corpus import Corpus, open_corpus
from comet.coverage import Coverage
from comet.coverage import coverage as coverage_of
from comet.durable import checksums, folder_aside, require_new_folder, sealed, unsealed, write_json
from comet.pretrained import load_config, model_folder
from comet.processes import say
from comet.students import load_tokenizer, require_embedded
from comet.task_model import CARD, read_card, sizes
from comet.trimmed_weights import load_as_saved, write_trimmed
from comet.vocabulary import Choice, Vocabulary, count_pieces

PROGRAM = "comet.trim"
REPORT = "trim.json"
_UNKNOWN = 0.5  # of a language's pieces, above which the tokenizer does not know its script
_PROOF_TEXTS, _PROOF_TOKENS = 4, 32  # of each language, that both models read
_LINE_BYTES = 64  # of a cache, and of the widest vectors


@dataclass(frozen=True)
class Kept:
    """What trimming did to a language, on held-out text.

    Attributes:
        share: of the pieces of the text that counted, how many were kept.
        same: share of held-out documents whose pieces were all kept.
        before: how the old tokenizer covers the held-out text.
        after: how the new one does.
    """

    share: float
    same: float
    before: Coverage
    after: Coverage


@dataclass(frozen=True)
class Proof:
    """What both models said of held-out text whose pieces were all kept.

    Attributes:
        documents: whose ids were compared.
        sequences: whose logits were.
        identical: whether those were the same, bit by bit.
        largest_difference: of the logits, otherwise.
    """

    documents: int
    sequences: int
    identical: bool
    largest_difference: float


def trim(
    model: str,
    corpus: Corpus,
    output: Path,
    *,
    revision: str | None = None,
    size: int | None = None,
    coverage: float | None = None,
    most_documents: int = 200_000,
) -> dict[str, Any]:
    """Write a model without the vocabulary that a corpus does not need.

    Args:
        model: folder or hub id of a model with a fast tokenizer, with whatever head.
        corpus: its training text decides, its held-out text is for the proof.
        output: folder to write; must not exist.
        revision: branch, tag or commit on the hub.
        size: entries to keep.
        coverage: or else, the share of its pieces that each language keeps at least, in (0, 1].
        most_documents: of each language that are counted.

    Returns:
        What `trim.json` holds.

    Raises:
        ValueError: something the user can mend, in one line; nothing is written then.
    """
    if (size is None) == (coverage is None):
        raise ValueError("--size: give either --size or --coverage")
    if coverage is not None and not 0 < coverage <= 1:
        raise ValueError(f"--coverage: got {coverage}, expected above 0 and at most 1")
    require_new_folder(output)
    folder = model_folder(model, revision=revision, flag="--model")
    tokenizer = load_tokenizer(str(folder), flag="--model")
    require_embedded(tokenizer, load_config(str(folder)), flag="--model")
    vocabulary = Vocabulary(tokenizer)
    counts = count_pieces(
        tokenizer,
        {one: corpus.training_texts(one, most_documents) for one in corpus.languages},
    )
    _require_known(tokenizer, counts)
    choice = vocabulary.choose(counts, size=size, coverage=coverage)
    trimmed, entries = vocabulary.only(choice.kept), len(vocabulary)
    del (
        vocabulary,
        counts,
    )  # of 250,002 entries some hundred MiB, beside which both models are to fit
    held_out = corpus.held_out()
    kept = {
        language: _kept(language, texts, tokenizer, trimmed, choice)
        for language, texts in held_out.items()
    }
    with folder_aside(output, new=True) as partial:
        parameters = write_trimmed(folder, choice.kept, partial)
        trimmed.save_pretrained(partial)
        if (folder / CARD).is_file():  # of a model that was fine-tuned
            replace(read_card(folder), size=sizes(load_as_saved(partial))).write(partial)
        carry(
            folder,
            partial,
            f"Trimmed with {PROGRAM} from {entries:,} entries of its vocabulary to {len(choice.kept):,}.",
            origin=model,
        )
        proof = _prove(folder, partial, tokenizer, trimmed, choice.kept, held_out)
        report = {
            "schema": 1,
            "model": str(model),
            "asked": {"size": size, "coverage": coverage},
            "entries": {"before": entries, "after": len(choice.kept)},
            "special": choice.special,
            "characters": choice.characters,
            "parameters": parameters,
            "languages": {language: asdict(one) for language, one in kept.items()},
            "proof": asdict(proof),
        }
        report["files"] = checksums(partial)
        write_json(partial / REPORT, sealed(report))
    return report


def _require_known(tokenizer: PreTrainedTokenizerFast, counts: Mapping[str, np.ndarray]) -> None:
    """Refuse text that the tokenizer cannot read."""
    for language, found in counts.items():
        unknown = tokenizer.unk_token_id
        share = 0.0 if unknown is None else float(found[unknown] / max(found.sum(), 1))
        if share >= _UNKNOWN or not found.sum():
            raise ValueError(
                f"--corpus: {share:.0%} of the pieces of {language} are unknown to the tokenizer, which does not know "
                "its script; leave the language out (--languages), or take another model"
            )


def _kept(
    language: str,
    texts: Sequence[str],
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    choice: Choice,
) -> Kept:
    same = sum(_whole(text, before, choice.kept) is not None for text in texts)
    return Kept(
        share=choice.shares[language],
        same=same / len(texts),
        before=coverage_of(before, texts),
        after=coverage_of(after, texts),
    )


def _whole(text: str, before: PreTrainedTokenizerFast, kept: np.ndarray) -> np.ndarray | None:
    """The new ids of a text by number alone, None where a piece of it was dropped."""
    ids = np.asarray(before.backend_tokenizer.encode(text).ids)
    places = np.searchsorted(kept, ids)
    found = kept[np.minimum(places, len(kept) - 1)] == ids
    return places if found.all() else None


def _prove(
    folder: Path,
    partial: Path,
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    kept: np.ndarray,
    held_out: Mapping[str, Sequence[str]],
) -> Proof:
    """Compare ids and logits of old and new on held-out text whose pieces were all kept.

    Raises:
        ValueError: ids differ, so that nothing may be said of the rest.
    """
    documents, sequences = 0, []
    for language, texts in held_out.items():
        chosen = []
        for text in texts:
            expected = _whole(text, before, kept)
            if expected is None:
                continue
            documents += 1
            if after.backend_tokenizer.encode(text).ids != expected.tolist():
                raise ValueError(
                    f"--model: trimming its tokenizer changes how a text of {language} is cut whose pieces were all "
                    f"kept ({text[:40]!r}); its kind of pre-processing is not supported"
                )
            chosen.append(torch.from_numpy(expected[:_PROOF_TOKENS]))
        sequences += chosen[:_PROOF_TEXTS]
    differences = []
    if sequences:
        old = torch.from_numpy(kept)
        theirs, places = _logits(folder, [old[ids] for ids in sequences], old)
        ours, _ = _logits(partial, sequences, places=places)
        differences = [(a - b).abs().max().item() for a, b in zip(theirs, ours, strict=True)]
    return Proof(
        documents=documents,
        sequences=len(sequences),
        identical=not any(differences),
        largest_difference=max(differences, default=0.0),
    )


@torch.no_grad()
def _logits(
    folder: Path,
    sequences: Sequence[Tensor],
    entries: Tensor | None = None,
    places: Mapping[str, int] | None = None,
) -> tuple[list[Tensor], dict[str, int]]:
    """What a model says of each sequence alone, logits or hidden states where it has no head; where its weights lie.

    BLAS may sum the same product in another order where it has more columns, or where a weight lies at another distance
    from a multiple of 64 bytes, as files that are mapped to memory have it.

    Args:
        folder: the model.
        sequences: ids.
        entries: of a head as long as the vocabulary, only these logits are computed. All of a large one would not fit.
        places: of the parameters, distances that they are moved to.
    """
    model = load_as_saved(folder)
    embeddings = model.get_input_embeddings().weight
    found = {name: value.data_ptr() % _LINE_BYTES for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        if places is not None and value is not embeddings and found[name] != places[name]:
            value.data = _moved(value, places[name])
    head = model.get_output_embeddings()
    if head is not None:
        weight = head.weight.clone() if entries is None else head.weight[entries]
        bias = head.bias if head.bias is None or entries is None else head.bias[entries]
        head.forward = lambda hidden: functional.linear(hidden, weight, bias)
    return [model(input_ids=ids[None])[0] for ids in sequences], found


def _moved(value: Tensor, place: int) -> Tensor:
    """A copy that begins so many bytes behind a multiple of 64."""
    size = value.element_size()
    room = value.new_empty(value.numel() + _LINE_BYTES // size)
    first = (place - room.data_ptr()) % _LINE_BYTES // size
    return room[first : first + value.numel()].view_as(value).copy_(value)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="Write a model without the vocabulary that a corpus does not need.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a model and its tokenizer: a folder or hub id",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    parser.add_argument(
        "--corpus", required=True, nargs="+", metavar="TEXT", help="as comet.distill"
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        type=items_of(str),
        default=[],
        metavar="CODE",
        help="only these of the corpus",
    )
    parser.add_argument("--size", type=int, metavar="N", help="entries to keep")
    parser.add_argument(
        "--coverage", type=float, metavar="C", help="or the share of its pieces each language keeps"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--documents",
        type=int,
        default=200_000,
        metavar="N",
        help="of each language that are counted at most (default: 200000)",
    )
    given = parser.parse_args(list(argv))
    corpus = open_corpus(
        given.corpus,
        languages=list(chain.from_iterable(given.languages)) or None,
        temperature=1.0,
        seed=0,
        held_out_per_language=64,
    )
    report = trim(
        given.model,
        corpus,
        given.output,
        revision=given.revision,
        size=given.size,
        coverage=given.coverage,
        most_documents=given.documents,
    )
    say(description(report))
    say(f"\nmodel   {given.output}")


def read_report(folder: Path) -> dict[str, Any]:
    """What `trim` returned when it wrote this folder.

    Raises:
        ValueError: it is not what was written.
    """
    return unsealed(json.loads((folder / REPORT).read_text("utf-8")))


def description(report: Mapping[str, Any]) -> str:
    """What trimming did, for people."""
    entries, parameters = report["entries"], report["parameters"]
    asked = report["asked"]["size"] or entries["after"]
    fewer = (
        "" if entries["after"] == asked else f"; {asked:,} were asked for, the text uses no more"
    )
    lines = [
        f"entries     {entries['before']:,} to {entries['after']:,}: {report['special']:,} special, "
        f"{report['characters']:,} single characters, and pieces that the text uses{fewer}",
        f"parameters  {parameters['before']:,} to {parameters['after']:,}",
        "",
        f"{'':8} {'pieces kept':>12} {'documents same':>15} {'pieces per word':>16} {'unknown':>8}   (held-out text)",
    ]
    for language, one in report["languages"].items():
        before, after = one["before"], one["after"]
        per_word = f"{before['pieces_per_word']:.2f} to {after['pieces_per_word']:.2f}"
        lines.append(
            f"{language:8} {one['share']:12.3%} {one['same']:15.1%} {per_word:>16} {after['unknown_rate']:8.2%}"
        )
    return "\n".join([*lines, "", f"proof       {_proven(report['proof'])}"])


def _proven(proof: Mapping[str, Any]) -> str:
    if not proof["documents"]:
        return (
            "none: no held-out document has all its pieces kept, so nothing could be compared; keep more entries "
            "to have a proof"
        )
    said = (
        "the same logits, bit by bit"
        if proof["identical"]
        else f"logits that differ by {proof['largest_difference']:.2g} at most"
    )
    return (
        f"{proof['documents']:,} held-out documents whose pieces were all kept have the same ids, one to one; "
        f"{proof['sequences']} of them, read by both models, {said}"
    )


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
