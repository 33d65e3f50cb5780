"""Labelled data of the Hugging Face hub, read with the `datasets` library, which is installed on demand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comet.corpus.documents import UNDETERMINED, find_language, language_code, language_named
from comet.names import path_component
from comet.offline import offline_where_unreachable, unreachable
from comet.tasks.files import split_names
from comet.tasks.recipe import TaskRecipe
from comet.tasks.rows import Columns, LeftOut, Row, row_of

HUB = "hub:"


def is_on_hub(recipe: TaskRecipe) -> bool:
    """Whether a task's data is a data set of the hub."""
    return recipe.data is not None and recipe.data.startswith(HUB)


def hub_rows(
    recipe: TaskRecipe, split: str, wanted: Sequence[str] | None, left_out: LeftOut
) -> Iterator[tuple[str, str, Row]]:
    """Read a split of `hub:OWNER/NAME[:CONFIG]`: rows with their language and where they come from.

    Without a configuration, one named by each language is taken where there are such, and else the only one.

    Raises:
        ValueError: `datasets` is not installed, the data set cannot be loaded, or lacks the split or a column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"task.data: {recipe.data} is read with the datasets library: pip install 'comet-distill[hub]'"
        ) from error
    name, _, configuration = str(recipe.data).removeprefix(HUB).partition(":")
    for language, chosen in _configurations(datasets, name, configuration or None, wanted, recipe):
        table = _load(datasets, name, chosen, split_names(recipe, split))
        source = f"{HUB}{name}:{chosen}/{table.split}" if chosen else f"{HUB}{name}/{table.split}"
        for row in table_rows(table, recipe, source, left_out):
            own = language if row.language is None else language_named(row.language, wanted)
            if wanted is None or own in wanted:
                yield own, source, row


def table_rows(table: Any, recipe: TaskRecipe, source: str, left_out: LeftOut) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`, numbered from 1, its numbered classes by name.

    Raises:
        ValueError: it lacks a column.
    """
    columns = Columns.of(table.column_names, recipe, source)
    feature = table.features[columns.label]
    feature = getattr(feature, "feature", feature)  # that of a list's items
    names = getattr(feature, "names", None)
    for line, record in enumerate(table, start=1):
        try:
            label = _named(record[columns.label], names)
            record = {**record, columns.label: label}
            yield row_of(line, record, columns, is_token=recipe.is_token)
        except ValueError as error:
            left_out.add(source, line, str(error))


def _named(label: Any, names: Sequence[str] | None) -> Any:
    """A numbered class, or a list of them, by name; −1 stands for no label."""
    if isinstance(label, list):
        return [_named(one, names) for one in label]
    if names is None or not isinstance(label, int):
        return label
    return names[label] if 0 <= label < len(names) else None


def _configurations(
    datasets: Any,
    name: str,
    given: str | None,
    wanted: Sequence[str] | None,
    recipe: TaskRecipe,
) -> list[tuple[str, str | None]]:
    """Which configurations to read, each with the language of its rows."""
    if given is not None or recipe.language_column is not None:
        if recipe.language_column is None and wanted is not None and len(wanted) > 1:
            raise ValueError(
                f"task.data: {given} of {name} is one configuration for {', '.join(wanted)}; leave it out, or say with "
                "--task.language_column which row is which"
            )
        only = wanted[0] if wanted else language_code(given or UNDETERMINED)
        return [(path_component(only, f"task.data: configuration of {name}"), given)]
    try:
        with offline_where_unreachable():
            offered = list(datasets.get_dataset_config_names(name))
    except Exception as error:  # the hub and the library have exceptions of their own
        raise _unreadable(name, error) from error
    by_language: Mapping[str, str] = {language_code(one): one for one in offered}
    chosen = {code: find_language(code, by_language) for code in wanted or ()}
    if chosen and None not in chosen.values():
        return [(code, by_language[str(there)]) for code, there in chosen.items()]
    if len(offered) == 1:
        return [(wanted[0] if wanted and len(wanted) == 1 else UNDETERMINED, offered[0])]
    raise ValueError(
        f"task.data: {name} has the configurations {', '.join(offered[:20])}; name one behind a colon, or languages "
        "among them"
    )


def _load(datasets: Any, name: str, configuration: str | None, splits: Sequence[str]) -> Any:
    """The first of several splits that is there."""
    try:
        with offline_where_unreachable():
            offered = datasets.get_dataset_split_names(name, configuration)
            chosen = next((one for one in splits if one in offered), None)
            if chosen is not None:
                return datasets.load_dataset(name, configuration, split=chosen)
    except Exception as error:  # as above
        raise _unreadable(name, error) from error
    raise ValueError(
        f"task.data: {name} has the splits {', '.join(map(str, offered))}, expected {' or '.join(splits)}"
    )


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    if why := unreachable():
        reason = f"it is not on this machine, and {why}; fetch it once where there is a network, or give local files"
    return ValueError(f"task.data: cannot load {HUB}{name}: {reason}")
