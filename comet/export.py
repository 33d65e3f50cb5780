"""`python -m comet.export`: a fine-tuned model in ONNX, in int8 too, or in half precision; and how near that is.

    python -m comet.export --model runs/sentiment --format onnx --optimize
    python -m comet.export --model runs/sentiment --format onnx --int8 --data DATA
    python -m comet.export --model runs/sentiment --format safetensors

What is written loads as any fine-tuned model does, with `python -m comet.predict --model DIR` and
`comet.Classifier(DIR)`. `export.json` in it tells how its answers differ from those of the model it was made of: on
labelled data (`--data`), on text (`--text`), or on made-up sentences.
"""

import argparse
import copy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from comet.card import carry
from comet.configuration import CommandParser, items_of, run_command
from comet.durable import folder_aside, require_new_folder, write_json
from comet.environment import versions
from comet.exports.parity import SAME, Examples, Parity, labelled, shapes, unlabelled
from comet.exports.quantisation import quantise_embeddings, quantise_products, sums_overflow
from comet.exports.tracing import finish, fold, tidy, trace
from comet.exports.weighing import REPORT, weigh
from comet.fine_tuned import find_model
from comet.onnx_encoder import GRAPH, Encoder, OnnxEncoder, extra, is_exported, load_encoder
from comet.processes import say
from comet.task_model import TaskEncoder
from comet.tasks import Task
from comet.tfidf import is_tfidf

PROGRAM = "comet.export"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_EXACT = 1e-3  # of the largest logit, that a graph in float32 may be off by


@dataclass(frozen=True)
class Form:
    """What is made of a model.

    Attributes:
        format: "onnx", or "safetensors", whose weights are then float16.
        int8: weights of one byte: "all" of them, or those of the "embeddings" alone; None for none.
        optimise: attention and the like in one operation each.
        reduce_range: weights of products in seven bits; None for where this processor needs it.

    Raises:
        ValueError: these do not go together.
    """

    format: Literal["onnx", "safetensors"] = "onnx"
    int8: Literal["all", "embeddings"] | None = None
    optimise: bool = False
    reduce_range: bool | None = None

    def __post_init__(self) -> None:
        if self.format == "safetensors":
            for flag, given in (("--int8", self.int8), ("--optimize", self.optimise)):
                if given:
                    raise ValueError(
                        f"{flag}: goes with --format onnx; safetensors hold weights in float16 and no graph"
                    )
        if self.reduce_range is not None and self.int8 != "all":
            raise ValueError("--reduce-range: goes with --int8 all, whose products it is about")

    @property
    def name(self) -> str:
        """What the folder is called behind the model's name."""
        if self.format == "safetensors":
            return "float16"
        int8 = {None: "", "all": "-int8", "embeddings": "-int8-embeddings"}[self.int8]
        return "onnx" + "-optimized" * self.optimise + int8


def export(
    model: str | Path,
    form: Form,
    output: Path | None = None,
    *,
    language: str | None = None,
    data: str | None = None,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    text: Path | None = None,
) -> dict[str, Any]:
    """Write a fine-tuned model in another form, and compare both.

    Args:
        model: a fine-tuned model's folder, or a run's, of whose seeds the best on dev is taken.
        form: what to write.
        output: folder to write, which must not exist; None for one beside the model's.
        language: code, where the run has a model for each.
        data: labelled file, or folder or data set with splits, that both are compared on.
        split: of a folder or data set; None for dev.
        languages: codes, of a folder or data set; None for those the model was fine-tuned on.
        text: file of text in place of labelled data.

    Returns:
        What `export.json` holds, and `output`.

    Raises:
        ValueError: something the user can mend, in one line; nothing is written then.
    """
    folder, choice = find_model(model, language)
    _require_whole(folder)
    if form.format == "onnx":
        for package in _PACKAGES:
            extra(package, "--format onnx needs")
    if output is None:
        folder = folder.resolve()  # "." has no name
        output = folder.with_name(f"{folder.name}-{form.name}")
    require_new_folder(output)
    if choice:
        say(choice)
    source = load_encoder(folder)
    examples = _examples(source, data, split, languages, text)
    with folder_aside(output, new=True) as partial:
        parity = Parity(source, examples)
        source.tokenizer.save_pretrained(partial)
        how = (_write_graph if form.format == "onnx" else _write_half)(source, form, partial)
        _write_card(source, partial)
        exported = load_encoder(partial)
        found = parity.of(exported.model)
        if form.int8 == "all" and not found["same"]:
            how = _write_graph(source, form, partial, spare=True)
            _write_card(source, partial)
            exported = load_encoder(partial)
            found = parity.of(exported.model)
        carry(
            folder,
            partial,
            f"Exported with {PROGRAM}: {_described(form)}.",
            origin=str(model),
            transformers=form.format == "safetensors",
        )
        report = {
            "schema": 1,
            "model": str(folder),
            "format": form.format,
            "weights": _weights(form),
            **how,
            "versions": versions(("torch", "transformers", *_PACKAGES)),
            "parity": found,
            "shapes": shapes(source, exported.model),
            "bytes": {"before": weigh(folder), "after": weigh(partial)},
        }
        write_json(partial / REPORT, report)
    return {**report, "output": str(output)}


def _described(form: Form) -> str:
    if form.format == "safetensors":
        return "weights in float16"
    fused = "attention and the like fused, " if form.optimise else ""
    return f"ONNX, {fused}weights in {_weights(form)}"


def _weights(form: Form) -> str:
    if form.format == "safetensors":
        return "float16"
    return "float32" if form.int8 is None else f"int8, {form.int8}"


def _require_whole(folder: Path) -> None:
    if is_tfidf(folder):
        raise ValueError(
            f"--model: {folder} is a TF-IDF model, of which there is nothing to export"
        )
    if is_exported(folder):
        raise ValueError(f"--model: {folder} was exported itself; give the model it was made of")


def _examples(
    source: Encoder,
    data: str | None,
    split: str | None,
    languages: Sequence[str] | None,
    text: Path | None,
) -> Examples:
    card = source.card
    task = Task(card.task, "token" if card.kind == "token" else "sequence", tuple(card.labels))
    if text is not None and data is not None:
        raise ValueError("--text: goes without --data, whose text is taken")
    if data is None:
        for flag, given in (("--split", split), ("--languages", languages)):
            if given:
                raise ValueError(f"{flag}: goes with --data")
        return unlabelled(task, text)
    if not Path(data).is_file():
        return labelled(task, data, split or "dev", languages or card.languages)
    if split:
        raise ValueError(f"--split: {data} is one file; leave it out, or give --data a folder")
    return labelled(task, data, "test", languages)  # as which a file is read


def _write_graph(
    source: Encoder, form: Form, partial: Path, *, spare: bool = False
) -> dict[str, Any]:
    """Write model.onnx; what was done to it.

    `spare` leaves the products that suffer most from int8 in float32.

    Raises:
        ValueError: the model cannot be exported, or the graph in float32 is not the same.
    """
    assert isinstance(source.model, TaskEncoder)
    traced, in_int8, file = partial / "traced.onnx", partial / "int8.onnx", partial / GRAPH
    trace(source.model.model, traced)
    if form.int8:
        shutil.copy(traced, in_int8)  # before the traced graph is finished, which changes it
    fused = finish(traced, file, optimise=form.optimise)
    _require_exact(source, file, form)
    quantised: dict[str, Any] | None = None
    if form.int8:
        quantised = {"tables": quantise_embeddings(in_int8)}
        fold(in_int8, in_int8)
        if form.int8 == "all":
            reduce_range = sums_overflow() if form.reduce_range is None else form.reduce_range
            quantised |= quantise_products(in_int8, reduce_range=reduce_range, spare=spare)
            quantised["spared"] = spare
        fused = finish(in_int8, file, optimise=form.optimise)
        in_int8.unlink()
    traced.unlink()
    source.model.model.config.save_pretrained(partial)  # which tells tokenizers of what kind it is
    return {"optimized": form.optimise, "fused": fused, "quantized": quantised, **tidy(file)}


def _require_exact(source: Encoder, file: Path, form: Form) -> None:
    """Refuse a graph that is off in float32, at some length or batch size."""
    found = shapes(source, OnnxEncoder(file))
    for one in found:
        if not one["error"] <= _EXACT * max(1.0, one["largest"]):
            blamed = "--optimize" if form.optimise else "--format onnx"
            raise ValueError(
                f"{blamed}: in ONNX the model's logits are off by {one['error']:.2g} with {one['batch']} sequences of "
                f"{one['length']} tokens" + "; leave it out" * form.optimise
            )


def _write_half(source: Encoder, form: Form, partial: Path) -> dict[str, Any]:
    """Write model.safetensors in float16.

    Raises:
        ValueError: a weight is too large for it.
    """
    assert isinstance(source.model, TaskEncoder)
    half = copy.deepcopy(source.model.model).half()
    for name, value in half.named_parameters():
        if not torch.isfinite(value).all():
            raise ValueError(f"--format safetensors: {name} has weights too large for float16")
    half.save_pretrained(partial)
    return {}


def _write_card(source: Encoder, partial: Path) -> None:
    """Write the model's card, with the bytes that the weights have now."""
    size = source.card.size
    if size is not None:
        weighed = weigh(partial)
        size = {**size, "bytes": weighed["embeddings"] + weighed["weights"]}
    replace(source.card, size=size).write(partial)


def description(report: Mapping[str, Any]) -> str:
    """What was exported and how near it is, for people."""
    return "\n".join([*_form_lines(report), "", *_size_lines(report), "", *_parity_lines(report)])


def _form_lines(report: Mapping[str, Any]) -> Iterator[str]:
    known = report["versions"]
    if report["format"] == "safetensors":
        yield "form        safetensors, weights in float16; read back as float32"
        return
    yield (
        f"form        ONNX, weights in {report['weights']}, opset {report['opset']['ai.onnx']}; "
        f"onnxruntime {known['onnxruntime']}, torch {known['torch']}"
    )
    if report["optimized"]:
        named = ("MultiHeadAttention", "Attention", "LayerNormalization", "SkipLayerNormalization")
        found = {
            name: count
            for name, count in report["operations"].items()
            if name in named or "Gelu" in name
        }
        yield "fused       " + ", ".join(f"{count} {name}" for name, count in found.items())
    quantised = report["quantized"]
    if quantised:
        seven_bits = ", those of seven bits" if quantised.get("reduce_range") else ""
        yield (
            f"int8        tables of embeddings: {quantised['tables']}, products with weights: "
            f"{quantised.get('products', 'none')}{seven_bits}"
        )
        if quantised.get("spared"):
            yield (
                f"            {quantised['products_in_float32']} products stay in float32: with those in int8 too, "
                f"fewer than {SAME:.1%} of the labels were the same"
            )


def _size_lines(report: Mapping[str, Any]) -> Iterator[str]:
    before, after = report["bytes"]["before"], report["bytes"]["after"]
    yield f"{'bytes':12}{'before':>14}{'after':>14}"
    for part in before:
        if before[part] or after[part]:
            yield f"{part:12}{before[part]:14,}{after[part]:14,}"


def _parity_lines(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["parity"]
    yield (
        f"labels      {found['agreement']:.2%} of {found['labels']:,} the same ({found['other']} other), {found['on']}"
    )
    yield f"logits      off by {found['largest_error']:.2g} at most, {found['mean_error']:.2g} on average"
    worst = max(report["shapes"], key=lambda one: one["error"])
    yield (
        f"shapes      1 to {max(one['length'] for one in report['shapes'])} tokens, 1 to "
        f"{max(one['batch'] for one in report['shapes'])} sequences, padded or not: off by {worst['error']:.2g} at most"
    )
    if found["measures"]:
        before, after = found["measures"]["before"], found["measures"]["after"]
        for name, value in before.items():
            yield f"{name:12}{100 * value:.2f} before, {100 * after[name]:.2f} after"
    if not found["same"]:
        yield (
            f"WARNING     fewer than {SAME:.1%} of the labels are the same"
            + "; --int8 embeddings keeps products in float32"
            * ("products" in (report.get("quantized") or {}))
        )


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = _parser().parse_args(list(argv))
    report = export(
        given.model,
        Form(given.format, given.int8, given.optimize, given.reduce_range),
        given.output,
        language=given.language,
        data=given.data,
        split=given.split,
        languages=list(chain.from_iterable(given.languages)) or None,
        text=given.text,
    )
    say(description(report))
    say(f"\nmodel       {report['output']}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="Write a fine-tuned model in another form, and compare both.",
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a fine-tuned model, or a run of them"
    )
    parser.add_argument("--language", metavar="CODE", help="where the run has a model for each")
    parser.add_argument(
        "--format",
        required=True,
        choices=("onnx", "safetensors"),
        help="a graph that onnxruntime runs, or weights in float16",
    )
    parser.add_argument(
        "--int8",
        nargs="?",
        const="all",
        choices=("all", "embeddings"),
        help="of onnx: weights of one byte, all, or those of the embeddings alone",
    )
    parser.add_argument(
        "--optimize", action="store_true", help="of onnx: fuse attention, GELU and normalisation"
    )
    parser.add_argument(
        "--reduce-range",
        action=argparse.BooleanOptionalAction,
        help="of int8: seven bits, for x86 processors without VNNI; by default as this one needs",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="a new folder; by default beside the model"
    )
    parser.add_argument(
        "--data", help="to compare on: a labelled file, or a folder or hub:OWNER/NAME with splits"
    )
    parser.add_argument("--split", choices=("dev", "test"), help="of --data (default: dev)")
    parser.add_argument(
        "--languages",
        nargs="+",
        type=items_of(str),
        default=[],
        help="codes, of --data; those that were trained on if not given",
    )
    parser.add_argument("--text", type=Path, help="to compare on without labels: a file of lines")
    return parser


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
