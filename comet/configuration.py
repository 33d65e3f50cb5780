"""Configuration: dataclass defaults < YAML < command line, refused early and in one line.

A recipe is a dataclass whose fields are dataclasses, one per part. Every field of every part is a key in YAML
(`objective: {temperature: 2}`) and a flag on the command line (`--objective.temperature 2`); help and types come from
the dataclass. Nothing unknown is accepted.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import transformers
import yaml

from comet.durable import full_disk
from comet.processes import (
    FailedElsewhereError,
    among_processes,
    are_several,
    is_said_by_main,
    on_main,
    say,
)
from comet.spellings import SAME, SWITCHES, VALUES, advice, meant, suggestion
from comet.streams import prepare_output

Recipe = TypeVar("Recipe")
RECIPES = Path(__file__).parent / "recipes"
COMMAND = "command"  # the key of a recipe file that says which command it is for
_EXACT = 2**53  # whole numbers up to this one are exact as float


def option(default: Any, help: str, *, formerly: Any = None, below: str | None = None) -> Any:
    """A recipe field.

    Args:
        default: its value where none is given.
        help: the sentence that `--help` shows.
        formerly: an earlier default, which recipes of earlier runs hold also where it does nothing.
        below: `part.field` that it has to stay below: `fit` sees to it where the user gave no value.
    """
    formerly = default if formerly is None else formerly
    metadata = {"help": help, "formerly": formerly, "below": below}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def require(condition: bool, key: str, got: object, expected: str) -> None:
    """Raise `ValueError("key: got …, expected …")` unless the condition holds."""
    if not condition:
        raise ValueError(f"{key}: got {got}, expected {expected}")


def is_idle(field: dataclasses.Field[Any], value: object) -> bool:
    """Whether a value says nothing: the default of its field, or an earlier one."""
    default = [] if field.default is dataclasses.MISSING else field.default
    return value == default or value == field.metadata.get("formerly", default)


def require_positive(part: str, values: dict[str, float]) -> None:
    """Require finite numbers above zero; keys are fields of `part`."""
    for name, value in values.items():
        require(math.isfinite(value) and value > 0, f"{part}.{name}", value, "a number above 0")


def run_command(
    main: Callable[[Sequence[str]], None], program: str, *, alone: bool = False
) -> NoReturn:
    """Run a command line; what its user can mend ends with one line and exit code 2, without a traceback.

    Args:
        main: given the command line without the program's name.
        program: what the user typed, for messages.
        alone: of several processes that were started together the main one runs it, and the others wait for it.
    """
    prepare_output()
    transformers.utils.logging.disable_progress_bar()  # ours is the only one
    with among_processes(program):
        try:
            if alone and are_several():
                on_main(lambda: main(sys.argv[1:]))
            else:
                main(sys.argv[1:])
        except FailedElsewhereError as error:
            sys.exit(error.code)
        except (ValueError, OSError) as error:
            if not is_said_by_main():
                reason = _one_line(str(full_disk(error) or error))
                print(f"{program}: error: {reason}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:  # libraries have exceptions of their own for a full disk
            from comet.memory_advice import is_out_of_memory  # which itself reads recipes

            if full := full_disk(error):
                print(f"{program}: error: {_one_line(str(full))}", file=sys.stderr)
                sys.exit(2)
            if not is_out_of_memory(error):
                raise
            advice = "out of memory while models were loaded: close other programs, or take a smaller model"
            print(f"{program}: error: {advice} ({_one_line(str(error))})", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as error:
            if not is_said_by_main():
                print(f"{program}: {str(error) or 'interrupted'}", file=sys.stderr)
            sys.exit(getattr(error, "code", 130))
    sys.exit(0)


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user gave, before defaults.

    Attributes:
        content: part → field → value, from the recipe file and the flags.
        recipe: the name or file of the recipe, or None.
        resume: that flag; a default recipe then adds nothing to `content`, as the run has its own.
        resume_from: the step of the checkpoint to go on from, None for the newest.
    """

    content: dict[str, dict[str, Any]]
    recipe: str | None
    resume: bool
    resume_from: int | None = None


def parse_command(
    recipe_class: type,
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    shortcuts: Mapping[str, str],
    default_recipe: Callable[[Mapping[str, Any]], str | None],
) -> Given:
    """Read a command line, and the recipe file that it names.

    Args:
        recipe_class: a dataclass of dataclasses.
        argv: the command line without the program's name.
        program: what the user typed, for messages.
        description: what `--help` says first.
        shortcuts: flag to `part.field`, as in `{"--teacher": "teacher.model"}`.
        default_recipe: from the given `part.field` values, the named recipe meant when `--recipe` is absent.

    Raises:
        ValueError: an unknown key, a value of the wrong type, a file that cannot be read.
    """
    parser = _parser(recipe_class, program, description, shortcuts)
    # a recipe's file is on the main process's machine, and one line is enough of what is wrong
    return on_main(lambda: _parsed(parser.parse_args(list(argv)), recipe_class, default_recipe))


def _parsed(
    arguments: argparse.Namespace,
    recipe_class: type,
    default_recipe: Callable[[Mapping[str, Any]], str | None],
) -> Given:
    namespace = vars(arguments)
    flags = {key: value for key, value in namespace.items() if "." in key}
    recipe = namespace["recipe"] or default_recipe(flags)
    resume = namespace["resume"] or namespace["resume_from"] is not None
    keeps_its_own = resume and namespace["recipe"] is None
    content = {} if recipe is None or keeps_its_own else read_recipe(recipe_class, recipe)
    comets = {} if recipe is None or is_file(recipe) else flat(content)
    own = flags.keys() | (flat(content).keys() - comets.keys())
    for key, value in flags.items():
        part, field = key.split(".")
        kind = get_type_hints(get_type_hints(recipe_class)[part])[field]
        if isinstance(value, list):
            value = list(itertools.chain.from_iterable(value))
        content.setdefault(part, {})[field] = _checked(kind, value, f"--{key}")
    if not resume:
        for key, value in fit(recipe_class, flat(content), comets, own).items():
            part, field = key.split(".")
            content.setdefault(part, {})[field] = value
    return Given(content, recipe, resume, namespace["resume_from"])


def fit(
    recipe_class: type, settings: Mapping[str, Any], comets: Mapping[str, Any], own: Container[str]
) -> dict[str, int]:
    """Shorten what would not stay below another field (`option(below=…)`) and was not given by the user; say so.

    Args:
        recipe_class: a dataclass of dataclasses.
        settings: `part.field` → value.
        comets: likewise, of the recipe of Comet's that they start from: what is shortened keeps its share there.
        own: keys that the user gave.

    Returns:
        Key → value of what is shorter now.
    """
    parts = get_type_hints(recipe_class)
    options = {
        f"{name}.{field.name}": field
        for name, part in parts.items()
        for field in dataclasses.fields(part)
    }
    found = {}
    for key, field in options.items():
        bound = field.metadata.get("below")
        if bound is None or key in own:
            continue
        source = comets if key in comets else {}
        usual, of = (source.get(one, options[one].default) for one in (key, bound))
        most = settings.get(bound, options[bound].default)
        if usual >= most:
            found[key] = min(usual * most // of, most - 1)
            say(
                f"{key}: {usual:,} would not be below {bound} ({most:,}); it is {found[key]:,} here, in proportion"
            )
    return found


def is_file(recipe: str) -> bool:
    """Whether `--recipe` names a file, not one of Comet's recipes."""
    return Path(recipe).suffix in (".yaml", ".yml")


def flat(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Part → field → value as `part.field` → value."""
    return {
        f"{part}.{field}": value
        for part, fields in content.items()
        for field, value in fields.items()
    }


def read_recipe(recipe_class: type, name_or_file: str) -> dict[str, dict[str, Any]]:
    """Read a named recipe or a YAML file into part → field → value, every key and type checked.

    Raises:
        ValueError: no such recipe, not YAML, an unknown part or field, a value of the wrong type.
    """
    path = Path(name_or_file)
    if not is_file(name_or_file):
        path = RECIPES / f"{name_or_file}.yaml"
        if not path.is_file():
            known = shipped(recipe_class)
            there = (
                f"there {'are' if len(known) > 1 else 'is'} {', '.join(known)}, or "
                if known
                else ""
            )
            raise ValueError(
                f"--recipe: no recipe is called {name_or_file!r}{suggestion(name_or_file, known)}; "
                f"{there}give a .yaml file"
            )
    content = _yaml(path)
    parts = get_type_hints(recipe_class)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected parts ({', '.join(parts)}), got {content!r}")
    own = _command_of(recipe_class)
    command = content.get(COMMAND, own)
    if command != own:
        raise ValueError(
            f"--recipe: {name_or_file} is a recipe of python -m comet.{command}, not of comet.{own}"
        )
    content = {name: part for name, part in content.items() if name != COMMAND}
    _refuse_fields(content, parts, str(path))
    refuse_unknown(content, list(parts), str(path), "part")
    return {
        name: checked_fields(parts[name], name, part, str(path)) for name, part in content.items()
    }


def shipped(recipe_class: type) -> list[str]:
    """The recipes that Comet has for a command, by name."""
    own = _command_of(recipe_class)
    files = sorted(RECIPES.glob("*.yaml"))
    return [file.stem for file in files if _yaml(file).get(COMMAND) == own]


def _yaml(path: Path) -> Any:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--recipe: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe: {path} is not YAML: {_one_line(str(error))}") from error
    return {} if content is None else content


def _command_of(recipe_class: type) -> str:
    """The command that reads recipes of a class: `distill` those of `DistillRecipe`."""
    return recipe_class.__name__.removesuffix("Recipe").lower()


def _refuse_fields(content: Mapping[Any, Any], parts: Mapping[str, type], source: str) -> None:
    """Say of a field that was written as if it were a part in which part it is."""
    for key in content:
        names = {str(key), SAME.get(str(key), "")}
        places = [
            f"{part}.{field}"
            for part, kind in parts.items()
            for field in names & get_type_hints(kind).keys()
        ]
        if key not in parts and places:
            raise ValueError(
                f"{source}: unknown part {key!r} (did you mean {' or '.join(places)}?); "
                f"fields are written under their part: {places[0].replace('.', ': {')}: …}}"
            )


def build(recipe_class: type[Recipe], content: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with these values, and the dataclasses' defaults for the rest.

    Raises:
        ValueError: a value or a combination that cannot be.
    """
    parts = get_type_hints(recipe_class)
    return recipe_class(**{name: part(**content.get(name, {})) for name, part in parts.items()})


def contradiction(
    content: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Name the first given value that differs from a stored one, or None where all agree."""
    for part, fields in content.items():
        for field, value in fields.items():
            if stored.get(part, {}).get(field) != value:
                return (
                    f"{part}.{field} is {stored.get(part, {}).get(field)!r} there, {value!r} here"
                )
    return None


def to_yaml(recipe: Any) -> str:
    """The recipe as YAML: reading it again gives the same recipe."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)


def checked_fields(part: type, name: str, content: Any, source: str) -> dict[str, Any]:
    """The fields of one part as they were written, each known and of its type.

    Raises:
        ValueError: one is not; the message begins with `source`.
    """
    hints = get_type_hints(part)
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: {name}: expected fields ({', '.join(hints)}), got {content!r}")
    refuse_unknown(content, list(hints), source, f"field of {name}")
    return {
        field: _checked(hints[field], value, f"{source}: {name}.{field}")
        for field, value in content.items()
    }


def refuse_unknown(
    content: Mapping[Any, Any], known: Sequence[str], source: str, kind: str
) -> None:
    """Raise a `ValueError` for the first key that is not known, with the nearest one that is."""
    for key in content:
        if key not in known:
            raise ValueError(
                f"{source}: unknown {kind} {key!r}{suggestion(str(key), known)}; "
                f"known: {', '.join(known)}"
            )


def refuse_empty(text: str, where: str) -> None:
    """Refuse text that holds nothing, such as that of a shell variable that is not set.

    Raises:
        ValueError: it is empty or blank.
    """
    if not text.strip():
        raise ValueError(f"{where}: got {text!r}, expected text that is not empty; or leave it out")


def _checked(kind: Any, value: Any, where: str) -> Any:
    """The value if it is of the annotated kind, whole numbers passing as float; a `ValueError` otherwise."""
    if isinstance(value, str):
        refuse_empty(value, where)
    for one in _options(kind):
        if get_origin(one) is Literal and _named(value, get_args(one)) in get_args(one):
            return _named(value, get_args(one))
        if get_origin(one) is list and isinstance(value, list):
            return [_checked(get_args(one)[0], item, where) for item in value]
        if one is NoneType and value is None:
            return value
        if one is float and type(value) in (int, float):
            return float(value)
        if one is float and isinstance(value, str) and _is_scientific(value):
            return float(value)  # YAML 1.1 takes 5e-4 for text
        if one in (str, bool) and type(value) is one:
            return value
        if one is int and (whole := _whole(value)) is not None:
            return whole
    raise ValueError(f"{where}: got {value!r}, expected {_kind_in_words(kind)}")


def _options(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union, or the one kind."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _named(value: Any, known: Sequence[Any]) -> Any:
    """The value, or what Comet calls it where another name is usual: `bf16` is bfloat16."""
    return VALUES[value] if value in VALUES and VALUES[value] in known else value


def _whole(value: Any) -> int | None:
    """A whole number, also one that is written as 1e3; None for anything else."""
    if isinstance(value, str) and _is_scientific(value):
        value = float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    return value if type(value) is int else None


def whole_number(text: str) -> int:
    """A whole number of the command line, also as 1e3.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with contextlib.suppress(ValueError):
        return int(text)
    found = _whole(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number")
    return found


def _is_scientific(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) is not None


def _kind_in_words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_kind_in_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list, each item {_kind_in_words(get_args(kind)[0])}"
    return "null" if kind is NoneType else names[kind]


class CommandParser(argparse.ArgumentParser):
    """Takes options as `comet.spellings` explains, and says what is wrong with them in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("type", int, whole_number)
        self._given: list[str] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse what is known, options by the names they have here; the rest is returned.

        Raises:
            ValueError: an argument is wrong or empty.
        """
        self._given = list(self._spelt(sys.argv[1:] if args is None else args))
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what was wrong as `ValueError`."""
        if re.match("unrecognized arguments|the following arguments are required", message):
            flags = (one.partition("=")[0] for one in self._given if one.startswith("--"))
            unknown = (flag for flag in flags if flag not in self._option_string_actions)
            flag = next(unknown, None)
            near = advice(flag, self._option_string_actions) if flag else ""
            message += f"; {flag} is unknown{near}" if flag and flag not in message else near
        raise ValueError(f"{message}; --help lists what can be given")

    def _spelt(self, args: Sequence[str]) -> Iterator[str]:
        """Arguments as this parser knows them, none of them empty."""
        flag = "the command line"
        rest = iter(args)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if not name.startswith("--") or name == "--":
                refuse_empty(argument, flag)
                yield argument
                continue
            flag = name
            if equals:
                refuse_empty(value, flag)
            known = meant(name, self._option_string_actions)
            switch = name.lstrip("-")
            if switch in SWITCHES and len(known) == 1 and not equals:
                yield from (known[0], switch)
            else:
                yield f"{known[0]}{equals}{value}" if len(known) == 1 else argument

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            near = suggestion(str(value), known)
            message = f"got {value!r}{near}, expected one of {', '.join(known)}"
            raise argparse.ArgumentError(action, message)


def _parser(
    recipe_class: type,
    program: str,
    description: str,
    shortcuts: Mapping[str, str],
) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=program,
        description=description,
        epilog="Options are also known with hyphens for underscores, without their part where no other part has such a "
        "field (--temperature), and by the names of Hugging Face's Trainer that mean the same (--max_steps, --bf16).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    named = shipped(recipe_class)
    parser.add_argument(
        "--recipe",
        default=None,
        metavar="NAME|FILE",
        help=" or ".join(["a YAML file", *([f"one of {', '.join(named)}"] if named else [])]),
    )
    parser.add_argument(
        "--resume", action="store_true", default=False, help="go on from the last checkpoint"
    )
    parser.add_argument(
        "--resume-from",
        type=int,
        default=None,
        metavar="STEP",
        help="go on from an earlier checkpoint; newer ones are set aside",
    )
    flags_of = {target: flag for flag, target in shortcuts.items()}
    for part_name, part in get_type_hints(recipe_class).items():
        group = parser.add_argument_group(part_name, (part.__doc__ or "").split("\n")[0])
        hints = get_type_hints(part)
        for field in dataclasses.fields(part):
            key = f"{part_name}.{field.name}"
            flags = [flags_of[key]] if key in flags_of else []
            flags.append(f"--{key}")
            group.add_argument(
                *flags, dest=key, help=field.metadata.get("help"), **_argument(hints[field.name])
            )
    return parser


def _argument(kind: Any) -> dict[str, Any]:
    """How argparse should take a field of this kind; what it lets through is checked again by kind."""
    options = [one for one in _options(kind) if one is not NoneType]
    one = options[0]
    if len(options) > 1:
        return {
            "type": _reader(options),
            "metavar": "|".join(_kind_in_short(one) for one in options),
        }
    if one is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(one) is list:
        item = get_args(one)[0]
        return {"nargs": "+", "type": items_of(item), "metavar": _kind_in_short(item)}
    if get_origin(one) is Literal:
        return {"type": partial(_named, known=get_args(one)), "choices": get_args(one)}
    return {"type": one, "metavar": _kind_in_short(one)}


def items_of(kind: Any) -> Callable[[str], list[Any]]:
    """From the command line's text to the items of a list; commas part them too, but for those in a file's name."""

    def read(text: str) -> list[Any]:
        parts = [text] if Path(text).exists() else [part.strip() for part in text.split(",")]
        if not all(parts):
            raise argparse.ArgumentTypeError(f"got {text!r}, which has an empty item")
        return [whole_number(part) if kind is int else part for part in parts]

    return read


def _reader(options: Sequence[Any]) -> Callable[[str], Any]:
    """From the command line's text to the first of several kinds that takes it."""

    def read(text: str) -> Any:
        for one in options:
            if get_origin(one) is Literal and text in get_args(one):
                return text
            if one in (int, float):
                with contextlib.suppress(ValueError, argparse.ArgumentTypeError):
                    return whole_number(text) if one is int else float(text)
        words = " or ".join(_kind_in_words(one) for one in options)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {words}")

    return read


def _kind_in_short(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _one_line(message: str) -> str:
    return " ".join(message.split())
