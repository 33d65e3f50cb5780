"""Saved results, read back: whole files, the cases in them, and the sizes that a plot can follow."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bench.results import RESULTS, Record

_NEEDED = {
    "ops": (
        *("op", "sizes", "without", "direction", "dtype", "device", "implementation"),
        *("median_seconds", "seconds", "extra_bytes", "bytes", "operations"),
    ),
    "steps": (
        *("variant", "sizes", "dtype", "device", "median_seconds", "seconds"),
        *("tokens_per_second", "peak_bytes"),
    ),
}
FEWEST_SIZES = 3  # that make a line
_HEAD = ("machine", "commit", "time", "versions", "hardware")
Key = TypeVar("Key")


class Sweep(NamedTuple):
    """Records that differ in one size, and in who computed them.

    Attributes:
        what: the op, or "step".
        size: the letter, or the name of the size.
        fixed: the other sizes, and what the case is without.
        device: of all of them.
        dtype: of all of them.
        lines: by implementation or variant, records in order of the size.
    """

    what: str
    size: str
    fixed: str
    device: str
    dtype: str
    lines: dict[str, list[Record]]


def read(path: Path) -> Record:
    """A file that `--save` wrote; a section that it lacks comes back empty.

    Raises:
        ValueError: it is something else, or holds nothing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict) or not any(found.get(section) for section in _NEEDED):
        raise ValueError(
            f"{path}: holds neither ops nor steps; expected what pytest bench/ --save writes"
        )
    _require(path, "the file", found, _HEAD)
    for section, fields in _NEEDED.items():
        for number, record in enumerate(found.setdefault(section, [])):
            _require(path, f"{section}[{number}]", record, fields)
            if not record["median_seconds"] > 0:
                raise ValueError(
                    f"{path}: {section}[{number}]: median_seconds is {record['median_seconds']}, expected more than 0"
                )
    found.setdefault("ceilings", {})
    return found


def _require(path: Path, where: str, found: object, fields: Iterable[str]) -> None:
    missing = [one for one in fields if not isinstance(found, dict) or one not in found]
    if missing:
        raise ValueError(f"{path}: {where} has no {missing[0]}")


def find(name: str) -> Path:
    """A result file by its path, or by the beginning of its name or commit.

    Raises:
        ValueError: none, or more than one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.exists() or not name:
        raise ValueError(f"{name or 'the name'}: expected a file of results, or a commit")
    stems = {one: one.stem for one in sorted(RESULTS.glob("*.json"))}
    found = [one for one, stem in stems.items() if stem.startswith(name) or f"-{name}" in stem]
    if len(found) == 1:
        return found[0]
    known = ", ".join(one.name for one in found or stems) or "no file"
    kind = "several files" if found else "no file"
    raise ValueError(f"{name}: {kind} of that name or commit in {RESULTS}; there is {known}")


def newest() -> list[tuple[Path, Record]]:
    """The last results of every machine in `bench/results`: where ops and steps were saved last, if not together.

    Raises:
        ValueError: there are none.
    """
    files = {path: read(path) for path in sorted(RESULTS.glob("*.json"))}
    last: dict[tuple[str, str], Path] = {}
    for path, found in sorted(files.items(), key=lambda one: str(one[1]["time"])):
        for section in _NEEDED:
            if found[section]:
                last[found["machine"], section] = path
    if not last:
        raise ValueError(f"no results in {RESULTS}; pytest bench/ --save writes them")
    return [
        (
            path,
            {**found, **{one: [] for one in _NEEDED if last.get((found["machine"], one)) != path}},
        )
        for path, found in files.items()
        if path in last.values()
    ]


def given(names: Sequence[str]) -> list[tuple[Path, Record]]:
    """Results by name, else the newest.

    Raises:
        ValueError: as by `find`, `read` and `newest`.
    """
    return [(path, read(path)) for path in map(find, names)] or newest()


def shape(record: Mapping[str, Any], leave_out: str = "") -> str:
    """The sizes of a record, as in "N=512 V=250002, no bias"."""
    sizes = " ".join(
        f"{name}={size}" for name, size in record["sizes"].items() if name != leave_out
    )
    without = record.get("without")
    return f"{sizes}, no {without}" if without else sizes


def grouped(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    """Records by what they have in common, in order of appearance."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def floor_seconds(record: Record, ceilings: Mapping[str, Mapping[str, float]]) -> float | None:
    """The least time that the ceilings of the record's device allow; None where they were not measured.

    The longer of its least bytes at the rate of a copy and its operations at the rate of matrix products.
    """
    measured = ceilings.get(record["device"], {})
    product = measured.get(f"{record['dtype']}_product_teraflops_per_second")
    copy = measured.get("copy_gigabytes_per_second")
    if copy is None or (record["operations"] and product is None):
        return None
    arithmetic = record["operations"] / (1e12 * product) if product else 0.0
    return max(record["bytes"] / (1e9 * copy), arithmetic) or None


def op_sweeps(records: Sequence[Record], most: int = 1) -> list[Sweep]:
    """For every op and letter the records, forward and backward, that differ in that letter only, if of three sizes.

    Args:
        records: of the section `ops`.
        most: how many families of the same op, letter, device and dtype are kept, those of the most sizes first.
    """
    both = [one for one in records if one["direction"] == "both"]
    return _sweeps(both, "op", "implementation", most)


def step_sweeps(records: Sequence[Record]) -> list[Sweep]:
    """The same of whole steps, by batch, length and vocabulary."""
    return _sweeps([{**one, "op": "step"} for one in records], "op", "variant", 1)


def side_by_side(steps: Sequence[Record]) -> list[list[Record]]:
    """For every device and dtype the sizes at which most variants were timed by part, the largest of such."""
    timed = [one for one in steps if one.get("parts")]
    best: dict[tuple[str, str], list[Record]] = {}
    for records in grouped(
        timed, lambda one: (one["device"], one["dtype"], str(one["sizes"]))
    ).values():
        key = records[0]["device"], records[0]["dtype"]
        if key not in best or _rank(records) > _rank(best[key]):
            best[key] = records
    return list(best.values())


def _rank(records: Sequence[Record]) -> tuple[int, int]:
    sizes = records[0]["sizes"]
    return len(records), sizes.get("batch", 0) * sizes.get("length", 0)


def _sweeps(records: Sequence[Record], what: str, who: str, most: int) -> list[Sweep]:
    found: list[Sweep] = []
    kinds = grouped(records, lambda one: (one[what], one["device"], one["dtype"]))
    for (name, device, dtype), same in kinds.items():
        for size in dict.fromkeys(letter for one in same for letter in one["sizes"]):
            having = [one for one in same if size in one["sizes"]]
            alike = grouped(having, functools.partial(shape, leave_out=size))
            families = [
                (fixed, family)
                for fixed, family in alike.items()
                if len({one["sizes"][size] for one in family}) >= FEWEST_SIZES
            ]
            families.sort(key=lambda one: -len({record["sizes"][size] for record in one[1]}))
            for fixed, family in families[:most]:
                ordered = sorted(family, key=lambda one: one["sizes"][size])
                lines = grouped(ordered, lambda one: str(one[who]))
                found.append(Sweep(name, size, fixed, device, dtype, lines))
    return found
