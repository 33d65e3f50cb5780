"""`python -m comet.card`: what a model is, in the README.md that lies with it; and the model to the hub.

    python -m comet.card runs/student
    python -m comet.card runs/sentiment --license mit --push-to-hub OWNER/NAME

Training writes a card into every model it saves, evaluating brings its scores up to date. A card says by which hash it
was written; one that was edited since is left alone. Nothing asks the hub but this command.
"""

import argparse
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard as HubCard

from comet.cards.facts import Facts, gather
from comet.cards.lineage import LICENCE_KEYS, README
from comet.cards.markdown import escaped
from comet.cards.push import push, require_pushable
from comet.cards.text import (
    CHANGES,
    LICENCE,
    SIZE,
    USE,
    card_body,
    card_metadata,
    licence_of,
    licence_words,
    section,
    size_words,
    usage,
    with_section,
)
from comet.configuration import CommandParser, run_command
from comet.durable import write_text
from comet.fine_tuned import find_model
from comet.holdings import instead
from comet.processes import say
from comet.tfidf import is_tfidf

PROGRAM = "comet.card"
_INHERITED = "Training and scores are those of the model it was made from.\n\n"
_MARK = re.compile(r"\n<!-- Written by comet\.card; sha256 ([0-9a-f]{64})\. [^>]*-->\n*\Z")


def card(
    folder: Path,
    home: Path | None = None,
    *,
    licence: str | None = None,
    origin: str | None = None,
    online: bool = False,
) -> str:
    """The card of a model, from what its run holds.

    Args:
        folder: the model's files.
        home: where they will lie in the end; None for where they are.
        licence: its identifier; None for what the last card or the teacher's says.
        origin: folder or hub id of the model that it was made from, where no run tells.
        online: ask the hub for the licence of a teacher that lies there.

    Raises:
        ValueError: a file of the run cannot be read.
    """
    facts = gather(folder, home, origin=origin, online=online)
    there = folder / README
    if facts.made is None and there.is_file():
        return _of_a_lone_model(facts, there.read_text("utf-8"), licence)
    terms = licence_of(facts, licence)
    return _marked(_page(card_metadata(facts, terms).to_yaml(), card_body(facts, terms)))


def describing(home: Path) -> Callable[[Path], None]:
    """Writes the card of a model into its folder before that is put in its place, `home`; a card fails no training."""

    def describe(partial: Path) -> None:
        try:
            if is_edited(home):  # its author's words stay
                shutil.copyfile(home / README, partial / README)
            else:
                write_text(partial / README, card(partial, home))
        except Exception as error:  # what was trained is worth more than its description
            say(f"warning: {home} has no {README} ({error}); python -m {PROGRAM} {home} writes it")

    return describe


def refresh(models: Iterable[Path], run: Path) -> None:
    """Bring the cards of a run's models up to date; others, and cards that were edited, stay as they are."""
    for model in models:
        if run.resolve() not in model.resolve().parents:
            continue
        if is_edited(model):
            say(
                f"{model / README} was edited and stays as it is; python -m {PROGRAM} {model} --force writes it anew"
            )
        else:
            describing(model)(model)


def carry(
    source: Path,
    target: Path,
    sentence: str,
    *,
    origin: str | None = None,
    transformers: bool = True,
) -> None:
    """Give a model that was made from another one that one's card, with a sentence on what was done; no card fails it.

    Args:
        source: folder of the model that it was made from; where that has no card, one is written from what is known.
        target: folder of the new one, with its weights and config.json in it.
        sentence: such as "Trimmed with comet.trim from 250,002 entries to 32,000."
        origin: what the user called the source, where that is a hub id.
        transformers: whether transformers loads the new one; else the card shows Comet's way alone.
    """
    try:
        text = _carried(source, target, sentence, origin, transformers)
        write_text(target / README, text)
    except Exception as error:  # the model is worth more than its description
        say(f"warning: the model has no {README} ({error})")


def _carried(
    source: Path, target: Path, sentence: str, origin: str | None, transformers: bool
) -> str:
    there = source / README
    ours = not is_edited(source)
    text = _without_mark(
        there.read_text("utf-8") if there.is_file() else card(source, origin=origin)
    )
    before = section(text, CHANGES)
    said = f"{before}\n" if before else _INHERITED
    text = with_section(text, CHANGES, f"{said}- {sentence}", before="Training")
    facts = gather(target)
    if ours:
        text = with_section(text, SIZE, size_words(facts))
        if not transformers:
            text = with_section(text, USE, usage(facts, transformers=False))
            text = text.replace("\nlibrary_name: transformers\n", "\nlibrary_name: onnx\n", 1)
    return _marked(text) if ours else text


def is_edited(model: Path) -> bool:
    """Whether the card that lies with a model is not as it was written here; no where there is none."""
    there = model / README
    if not there.is_file():
        return False
    text = there.read_text("utf-8").replace("\r\n", "\n")
    found = _MARK.search(text)
    return found is None or found[1] != _digest(text[: found.start()])


def models_of(folder: Path) -> list[Path]:
    """The models of a folder: itself, or those of a run.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    places = [folder, folder / "student", folder / "model", *sorted(folder.glob("seed-*/**/model"))]
    found = [one for one in places if (one / "config.json").is_file() or is_tfidf(one)]
    if not found:
        raise ValueError(
            f"{folder} holds no model"
            + (
                instead(folder, "model")
                or ": neither config.json, student/, model/ nor seed-N/model/"
            )
        )
    return found[:1] if found[0] == folder else found


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = _parser().parse_args(list(argv))
    models = models_of(given.folder)
    repository = given.push_to_hub
    if repository is None:
        if given.private or given.revision:
            raise ValueError("--private and --revision: give them with --push-to-hub OWNER/NAME")
    else:
        require_pushable(repository)
        models = [_only(given.folder, models, given.language)]
    edited = [model for model in models if is_edited(model) and not given.force]
    if edited and (repository is None or given.license is not None):
        raise ValueError(
            f"{edited[0] / README} was edited since it was written: it stays as it is; --force writes it anew"
        )
    texts = {
        model: (model / README).read_text("utf-8")
        if model in edited
        else card(model, licence=given.license, online=True)
        for model in models
    }
    if repository is not None:
        (model,) = models
        address = push(
            model,
            _for_hub(texts[model], model, repository),
            repository,
            private=given.private,
            revision=given.revision,
        )
        say(f"pushed  {model} to {address}")
    for model, text in texts.items():
        if model not in edited:
            write_text(model / README, text)
            say(f"card    {model / README}")


def _only(folder: Path, models: Sequence[Path], language: str | None) -> Path:
    """The model that is pushed: of several seeds the best on dev."""
    if len(models) == 1:
        return models[0]
    found = find_model(folder, language, flag="--push-to-hub")
    say(f"model   {found.choice or found.folder}")
    return found.folder


def _of_a_lone_model(facts: Facts, text: str, licence: str | None) -> str:
    """The card of a model that no run lies around: the one there is, with another licence where one is known now."""
    terms = licence_of(facts, licence)
    if terms["license"] == facts.previous.get("license"):
        return text
    found = HubCard(_without_mark(text), ignore_metadata_errors=True)
    for name in LICENCE_KEYS:  # nothing stays of the old licence's name and link
        found.data[name] = terms.get(name)
    body = with_section(found.text, LICENCE, licence_words(facts, terms))
    return _marked(_page(found.data.to_yaml(), body))


def _for_hub(text: str, model: Path, repository: str) -> str:
    """A card whose code and heading name the repository in place of the folder; edited ones where they have these."""
    facts, body = gather(model), _without_mark(text)
    for transformers in (True, False):
        here = usage(facts, transformers=transformers)
        body = body.replace(here, usage(facts, transformers=transformers, hub_id=repository))
    body = body.replace(f"\n# {escaped(facts.name)}\n", f"\n# {repository.split('/')[1]}\n", 1)
    return _marked(body) if _MARK.search(text) else body


def _page(metadata: str, body: str) -> str:
    return f"---\n{metadata}\n---\n\n{body.strip()}\n"


def _marked(text: str) -> str:
    text = text.rstrip()
    mark = f"<!-- Written by comet.card; sha256 {_digest(text)}. An edited card is not overwritten. -->"
    return f"{text}\n\n{mark}\n"


def _without_mark(text: str) -> str:
    return _MARK.sub("\n", text.replace("\r\n", "\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="Write a model's card (README.md) from what its run holds, and push the model to the hub.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run, or one model's folder")
    parser.add_argument(
        "--license", metavar="ID", help="such as mit or apache-2.0; the teacher's if not given"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a card that was edited")
    parser.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="send the model there; of several seeds the best on dev",
    )
    parser.add_argument(
        "--private", action="store_true", help="a repository that others do not see"
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", help="made if it is not there; main if not given"
    )
    parser.add_argument("--language", metavar="CODE", help="where the run has a model for each")
    return parser


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
