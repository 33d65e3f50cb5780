"""A model card's metadata and its words, from what is known of a model."""

from collections.abc import Mapping

from huggingface_hub import ModelCardData

import comet
from comet.cards.facts import ENCODER, Facts
from comet.cards.licences import licence_identifier
from comet.cards.lineage import FROM_SCRATCH, LICENCE_KEYS, UNKNOWN
from comet.cards.markdown import code, escaped
from comet.cards.scores import floor_words, has_unseen, results, score_words
from comet.cards.training import datasets, training_words
from comet.corpus.documents import UNDETERMINED, is_language, two_letter_code
from comet.report.words import listed, size

USE, SIZE, CHANGES, LICENCE = "How to use", "Size", "What was done to it since", "Licence"
_EXAMPLE = '"Ina son wannan."'
_MASKED = 'f"Ina {run.tokenizer.mask_token} yau."'
_REMEDY = "fill it in with `python -m comet.card . --license ID`"
_PAPER = """\
@article{raju2025afroxlmrcomet,
  title = {{AfroXLMR-Comet}: Multilingual Knowledge Distillation with Attention Matching for Low-Resource languages},
  author = {Raju, Joshua Sakthivel and S, Sanjay and Walia, Jaskaran Singh and Raghav, Srinivas and Marivate, Vukosi},
  journal = {arXiv preprint arXiv:2502.18020},
  year = {2025}
}"""


def card_metadata(facts: Facts, licence: Mapping[str, str]) -> ModelCardData:
    """The YAML that the hub reads."""
    tags = ["comet", *(["knowledge-distillation"] if facts.made == "distilled" else [])]
    if facts.is_from_scratch:
        tags.append(FROM_SCRATCH)
    codes = [two_letter_code(one) for one in facts.languages if is_language(one)]
    found = results(facts)
    return ModelCardData(
        language=[one for one in dict.fromkeys(codes) if one != UNDETERMINED] or None,
        library_name="comet" if facts.is_tfidf else "transformers",
        tags=tags,
        base_model=(facts.base.hub_ids if facts.base else None) or facts.previous.get("base_model"),
        datasets=datasets(facts) or None,
        pipeline_tag=facts.kind,
        model_name=facts.name if found else None,
        eval_results=found or None,
        license=licence["license"],
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )


def licence_of(facts: Facts, given: str | None = None) -> dict[str, str]:
    """What the card says of the licence: what was given, else what the last card said, else what the base's says."""
    if given is not None:
        return {"license": licence_identifier(given)}
    before = {name: str(facts.previous[name]) for name in LICENCE_KEYS if facts.previous.get(name)}
    if before.get("license", UNKNOWN) != UNKNOWN:
        return before
    return (facts.base.licence if facts.base else {}) or {"license": UNKNOWN}


def card_body(facts: Facts, licence: Mapping[str, str]) -> str:
    """The words below the metadata."""
    parts = {
        USE: usage(facts),
        "Training": training_words(facts),
        "Scores": score_words(facts),
        SIZE: size_words(facts),
        "Limits": _limits(facts),
        LICENCE: licence_words(facts, licence),
        "Citation": _citation(),
    }
    sections = [f"## {title}\n\n{text}" for title, text in parts.items() if text]
    return "\n\n".join([f"# {escaped(facts.name)}", _introduction(facts), *sections])


def section(body: str, title: str) -> str | None:
    """The words under a heading; None where there is no such."""
    head = f"\n## {title}\n\n"
    if head not in body:
        return None
    return body.split(head, 1)[1].split("\n## ", 1)[0].rstrip()


def with_section(body: str, title: str, text: str, *, before: str | None = None) -> str:
    """The body with other words under a heading; where there is none it is put before another one, or at the end."""
    old = section(body, title)
    if old is not None:
        return body.replace(f"\n## {title}\n\n{old}", f"\n## {title}\n\n{text}")
    head, mark, rest = body.partition(f"\n## {before}\n") if before else (body, "", "")
    return f"{head.rstrip()}\n\n## {title}\n\n{text}\n{mark}{rest}"


def usage(facts: Facts, *, hub_id: str | None = None, transformers: bool = True) -> str:
    """Code to paste: for the folder that one is in, or for the hub.

    Args:
        facts: of the model.
        hub_id: OWNER/NAME; None for the folder.
        transformers: whether transformers loads it.
    """
    blocks = []
    if transformers and not facts.is_tfidf:
        blocks.append(_with_transformers(facts, hub_id or "."))
    if facts.tuned is not None:
        blocks.append(_with_comet(facts, hub_id))
    fenced = [f"```python\n{block}```" for block in blocks]
    where = "" if hub_id else "In this folder:\n\n"
    return where + "\n\nor with Comet, which reads texts as in training:\n\n".join(fenced)


def _with_transformers(facts: Facts, place: str) -> str:
    options = {
        "text-classification": ", truncation=True",
        "token-classification": ', aggregation_strategy="first"',
    }.get(facts.kind, "")
    if facts.kind == "text-classification" and facts.tuned is not None:
        options += f", max_length={facts.tuned.max_length}"
    text = _MASKED if facts.kind == "fill-mask" else _EXAMPLE
    return (
        "from transformers import pipeline\n\n"
        f'run = pipeline("{facts.kind}", model="{place}"{options})\n'
        f"print(run({text}))\n"
    )


def _with_comet(facts: Facts, hub_id: str | None) -> str:
    place = f'snapshot_download("{hub_id}")' if hub_id else '"."'
    fetch = "from huggingface_hub import snapshot_download\n" if hub_id else ""
    call = "entities" if facts.kind == "token-classification" else "predict"
    return (
        f"from comet import Classifier\n{fetch}\n"
        f"classifier = Classifier({place})\n"
        f"print(classifier.{call}([{_EXAMPLE}]))\n"
    )


def size_words(facts: Facts) -> str:
    """Parameters and bytes."""
    found = f"{size(facts.disk)} of weights on disk ({facts.disk:,} bytes)."
    if not facts.size:
        return found
    total, layers = facts.size["parameters"], facts.size["encoder_parameters"]
    return f"{total:,} parameters, {layers:,} of them in the encoder's layers; {found}"


def licence_words(facts: Facts, licence: Mapping[str, str]) -> str:
    """Where the licence is from, or that it has to be filled in."""
    words = [_licence(facts, licence)]
    if facts.start is not None:
        words.append(f"Its weights started from {code(facts.start)}, whose licence holds too.")
    return " ".join([*words, "Mind what the training data's licences ask for."])


def _licence(facts: Facts, licence: Mapping[str, str]) -> str:
    name, base = licence["license"], facts.base
    role = "teacher" if facts.made == "distilled" else "model that it was made from"
    of_base = "" if base is None else f"the {role}, {code(base.name)}"
    if name != UNKNOWN:
        inherited = base is not None and base.licence.get("license") == name
        return f"{escaped(licence.get('license_name', name))}{f', inherited from {of_base}' if inherited else ''}."
    if facts.is_from_scratch:
        whose = of_base[0].upper() + of_base[1:] + ", was" if base else "It was"
        return (
            f"{whose} trained from random weights: there is no licence to inherit. Before the model is shared, "
            f"choose one and {_REMEDY}."
        )
    if base is None:
        return f"Unknown: {_REMEDY}."
    asked = "names none" if base.asked else "is not there or was not read"
    return f"Unknown: the card of {of_base}, {asked}. Look it up and {_REMEDY}."


def _introduction(facts: Facts) -> str:
    by = f"with [Comet](https://arxiv.org/abs/2502.18020) {comet.__version__}"
    base = code(facts.base.name) if facts.base else None
    if facts.tuned is not None:
        does = "tags words as" if facts.tuned.kind == "token" else "tells texts apart as"
        told = f"{does} {listed([escaped(label) for label in facts.tuned.labels])}"
        if facts.is_tfidf:
            return f"TF-IDF of character n-grams, fitted {by}: it {told}."
        if facts.made is None:
            return f"An encoder, fine-tuned {by}: it {told}."
        shape = (
            ", of which it has the shape alone"
            if facts.recipe["model"]["initial"] == "random"
            else ""
        )
        return f"{base or 'An encoder'}{shape}, fine-tuned {by}: it {told}."
    layers, width = facts.config.get("num_hidden_layers"), facts.config.get("hidden_size")
    sizes = f" of {layers} layers and hidden size {width}" if layers and width else ""
    how = {
        "distilled": f", distilled from {base or 'a teacher'} {by}",
        "adapted": f": {base} trained further {by}"
        if base
        else f", trained from random weights {by}",
    }
    what = {"fill-mask": "A masked language model", ENCODER: "An encoder"}
    return f"{what.get(facts.kind, 'A classifier')}{sizes}{how.get(facts.made or '', '')}."


def _limits(facts: Facts) -> str:
    lines = []
    if facts.languages:
        others = (
            "others are in the table above" if has_unseen(facts) else "others were not measured"
        )
        lines.append(
            f"Trained on {listed([escaped(name) for name in facts.languages])} alone; {others}."
        )
    if facts.tuned is None and facts.made is not None:
        length = facts.recipe["corpus"]["max_length"]
        lines.append(f"Trained on {length} tokens at a time; to be fine-tuned, not to write text.")
    elif facts.tuned is not None and not facts.is_tfidf:
        how = (
            "is read in pieces"
            if facts.kind == "token-classification"
            else "counts by its beginning alone"
        )
        lines.append(f"A text of more than {facts.tuned.max_length} tokens {how}.")
    coverage = facts.record.get("coverage") or {}
    if coverage:
        cut = [
            f"{escaped(name)} {one['unknown_rate']:.2%} and {one['pieces_per_word']:.2f}"
            for name, one in coverage.items()
        ]
        lines.append(
            f"Unknown pieces, and pieces per word (many: badly covered): {', '.join(cut)}."
        )
    if facts.made == "tuned" and not facts.is_tfidf:
        lines.append(floor_words(facts))
    lines.append("What its text and its teachers got wrong, prejudice included, it has learnt.")
    return "\n".join(f"- {line}" for line in lines)


def _citation() -> str:
    software = (
        "@software{comet,\n  title = {Comet: distilling large multilingual encoders into small ones},\n"
        f"  version = {{{comet.__version__}}}\n}}"
    )
    return f"The method, and the program:\n\n```bibtex\n{_PAPER}\n\n{software}\n```"
