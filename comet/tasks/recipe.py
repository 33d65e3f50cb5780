"""The part of a recipe that names a task and its data."""

from dataclasses import dataclass
from typing import Literal

from comet.configuration import option, require
from comet.tasks.entities import is_bio


@dataclass(frozen=True)
class TaskRecipe:
    """The labelled data."""

    task: Literal["afrisenti", "masakhaner", "sequence", "token"] = option(
        "afrisenti",
        "sentiment of tweets, named entities, or data of your own: a label for each text or each word",
    )
    data: str | None = option(
        None,
        "folder laid out as LANG/{train,dev,test}.{tsv,csv,jsonl,txt,conll} or without LANG, a file to test on, "
        "or hub:OWNER/NAME[:CONFIG]",
    )
    languages: list[str] | None = option(None, "only these language codes")
    labels: list[str] | None = option(
        None, "names of the labels, in order; none: the task's own, or those of the train split"
    )
    text_column: str | None = option(None, "column of the text; none: tweet or text, or tokens")
    label_column: str | None = option(
        None, "column of the label; none: label, or ner_tags, tags or labels"
    )
    language_column: str | None = option(
        None, "column of the language code, where one file holds several"
    )
    train: str | None = option(None, "file, or name of the split; none: train")
    dev: str | None = option(None, "file, or name of the split; none: dev, validation or valid")
    test: str | None = option(None, "file, or name of the split; none: test")
    strict: bool = option(False, "end at a row that cannot be used instead of leaving it out")

    def __post_init__(self) -> None:
        for name in ("languages", "labels"):
            given = getattr(self, name)
            require(
                given is None or (bool(given) and len(set(given)) == len(given)),
                f"task.{name}",
                given,
                "one or more, each once",
            )
        require(
            self.labels is None or self.task in ("sequence", "token"),
            "task.labels",
            self.labels,
            f"nothing, as {self.task} has its own; leave it out, or use --task sequence or token",
        )

        strange = [label for label in self.labels or () if self.is_token and not is_bio(label)]
        require(not strange, "task.labels", strange, "O, B-TYPE or I-TYPE, as each word has a tag")

    @property
    def is_token(self) -> bool:
        """Whether each word has a tag."""
        return self.task in ("masakhaner", "token")
