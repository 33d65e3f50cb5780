"""Which models a fine-tuning run holds, seed by seed, as its folder shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comet.configuration import build, read_recipe
from comet.durable import checksum
from comet.finetune_recipe import FinetuneRecipe
from comet.holdings import PROGRAMS, instead, kind_of
from comet.names import path_component
from comet.runs import RECIPE, read_record
from comet.task_model import CARD, ModelCard, read_card
from comet.tasks import Task
from comet.tfidf import is_tfidf, require_current

MODEL = "model"


@dataclass(frozen=True)
class TunedSystem:
    """Models that differ in their seed, and in their language where each has its own.

    Attributes:
        name: what they are called in tables.
        seeds: seed → folders of its models: one, or one for each language.
        cards: of the models, by folder.
    """

    name: str
    seeds: Mapping[int, Sequence[Path]]
    cards: Mapping[Path, ModelCard]

    @property
    def task(self) -> Task:
        """What they were fine-tuned on."""
        card = next(iter(self.cards.values()))
        return Task(card.task, "token" if card.kind == "token" else "sequence", tuple(card.labels))

    @property
    def languages(self) -> list[str]:
        """What they were fine-tuned on, each once."""
        found = (
            name
            for folders in self.seeds.values()
            for one in folders
            for name in self.cards[one].languages
        )
        return list(dict.fromkeys(found))

    @property
    def is_joint(self) -> bool:
        """Whether one model knows all languages."""
        return all(len(folders) == 1 for folders in self.seeds.values())

    def model_of(self, seed: int, language: str) -> Path:
        """The folder of the model that reads a language.

        Raises:
            ValueError: there is none.
        """
        folders = self.seeds[seed]
        if len(folders) == 1:
            return folders[0]
        for folder in folders:
            if language in self.cards[folder].languages:
                return folder
        raise ValueError(
            f"--languages: {self.name} has a model for each of {', '.join(self.languages)}, and none for {language}; "
            "models of one language are not measured on others"
        )

    @property
    def size(self) -> dict[str, int] | None:
        """Of one seed's models together; None where one does not know."""
        sizes = [self.cards[folder].size for folder in next(iter(self.seeds.values()))]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        return {name: sum(size[name] for size in known) for name in known[0]}


def member_folder(run: Path, seed: int, language: str | None) -> Path:
    """Where one model of a run is trained.

    Raises:
        ValueError: the language's name cannot be a folder's.
    """
    folder = run / f"seed-{seed}"
    return folder if language is None else folder / path_component(language, "language")


def is_done(folder: Path) -> bool:
    """Whether the run in a folder has ended well."""
    return read_record(folder).get("state") == "done"


def recipe_of(run: Path, *, flag: str = "--run") -> FinetuneRecipe:
    """The recipe of a fine-tuning run.

    Raises:
        ValueError: the folder holds none.
    """
    kind = kind_of(run)
    if not (run / RECIPE).is_file() or (kind in PROGRAMS and kind != "fine-tuning run"):
        raise ValueError(f"{flag}: {run} holds no fine-tuning run{instead(run, 'fine-tuning run')}")
    return build(FinetuneRecipe, read_recipe(FinetuneRecipe, str(run / RECIPE)))


def system_of_run(run: Path, *, flag: str = "--run", name: str | None = None) -> TunedSystem:
    """The models of a fine-tuning run, all of its seeds.

    Raises:
        ValueError: the folder holds no such run, or one without some seed's model, or a language's.
    """
    wanted = recipe_of(run, flag=flag).run.seeds
    seeds = {
        seed: sorted(card.parent for card in (run / f"seed-{seed}").glob(f"**/{MODEL}/{CARD}"))
        for seed in wanted
    }
    missing = [str(seed) for seed, folders in seeds.items() if not folders]
    if missing:
        raise ValueError(
            f"{flag}: {run} holds no model of seed {', '.join(missing)} yet; go on with python -m comet.finetune "
            f"--resume --output {run}"
        )
    cards = {folder: read_card(folder, flag=flag) for found in seeds.values() for folder in found}
    known = {
        seed: {name for one in folders for name in cards[one].languages}
        for seed, folders in seeds.items()
    }
    everything = set().union(*known.values())
    for seed, languages in known.items():
        if languages != everything:
            lacking = ", ".join(sorted(everything - languages))
            raise ValueError(
                f"{flag}: {run} holds no model of {lacking} with seed {seed} yet; go on with python -m comet.finetune "
                f"--resume --output {run}"
            )
    run = run.resolve()
    return TunedSystem(
        name or (run.parent.name if run.name == "finetune" else run.name), seeds, cards
    )


def system_of_models(folders: Sequence[Path], *, name: str | None = None) -> TunedSystem:
    """A system of models that are given one by one, each of another seed.

    Raises:
        ValueError: a folder holds none, two have the same seed, or their labels differ.
    """
    cards = {folder: read_card(folder) for folder in folders}
    seeds: dict[int, list[Path]] = {}
    for folder, card in cards.items():
        seeds.setdefault(card.seed, []).append(folder)
    for seed, found in seeds.items():
        if len(found) > 1:
            raise ValueError(
                f"--model: {found[0]} and {found[1]} are both of seed {seed}; models of one system differ in it"
            )
    if len({tuple(card.labels) for card in cards.values()}) > 1:
        raise ValueError("--model: the models have different labels; measure them one by one")
    return TunedSystem(name or folders[0].resolve().name, seeds, cards)


def weights_fingerprint(model: Path) -> str:
    """SHA-256 of a saved or exported model's weights, of one file or several.

    Raises:
        ValueError: a TF-IDF model of another version.
    """
    if is_tfidf(model):
        require_current(model)
    files = sorted([*model.glob("*.safetensors"), *model.glob("*.onnx")])
    return " ".join(checksum(file) for file in files)
