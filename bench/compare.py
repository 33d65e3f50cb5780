"""What a change did: two result files, case by case.

    python -m bench.compare OLD NEW [--fail-above 1.1] [--changed]

OLD and NEW are files that `--save` wrote, or beginnings of their commits. Times are medians, ± half the distance from
first to third quartile. A case counts as slower, or faster, where the middle halves of both do not overlap and
the medians are more than 5 % apart; `--fail-above R` ends with exit code 1 if a case that counts as slower takes over R
times as long. Cases of fewer than three rounds are not judged.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence

from bench import reading
from bench.results import Record
from comet.configuration import run_command

PROGRAM = "bench.compare"
APART = 1.05  # medians nearer than this differ from run to run, whatever the rounds of one run say
FEWEST_ROUNDS = 3
HEAD = ("case", "implementation", "old", "new", "ratio", "", "memory, old", "new")
_CASE = ("op", "variant", "without", "direction", "dtype", "device", "implementation", "sizes")


def quartiles(record: Record) -> tuple[float, float] | None:
    """First and third of a record's rounds; None where there are too few."""
    seconds = record["seconds"]
    if len(seconds) < FEWEST_ROUNDS:
        return None
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, high


def verdict(old: Record, new: Record) -> str:
    """ "slower", "faster", "" for neither, "?" for too few rounds."""
    before, after = quartiles(old), quartiles(new)
    if before is None or after is None:
        return "?"
    ratio = new["median_seconds"] / old["median_seconds"]
    if after[0] > before[1] and ratio > APART:
        return "slower"
    if after[1] < before[0] and ratio < 1 / APART:
        return "faster"
    return ""


def cases(found: Record) -> dict[str, Record]:
    """Records of both sections by what tells them apart."""
    return {
        json.dumps([record.get(field) for field in _CASE]): record
        for section in ("ops", "steps")
        for record in found[section]
    }


def warnings(old: Record, new: Record) -> Iterator[str]:
    """Why the two may not be comparable."""
    if old["machine"] != new["machine"]:
        yield f"machines differ: {old['machine']} and {new['machine']}"
    for kind in ("hardware", "versions"):
        for name in dict.fromkeys((*old[kind], *new[kind])):
            one, other = old[kind].get(name), new[kind].get(name)
            if one != other and not (kind == "hardware" and name in ("cpu", "gpu")):
                yield f"{name} differs: {one} and {other}"
    for device, measured in old["ceilings"].items():
        for name, rate in measured.items():
            ratio = new["ceilings"].get(device, {}).get(name, rate) / rate
            if not 0.9 < ratio < 1.1:
                yield f"the machine itself ran at {ratio:.2f} times its rate: {device}, {name.replace('_', ' ')}"


def table(old: Record, new: Record, *, changed_only: bool = False) -> list[str]:
    """A head and a line for each case in both, then the cases in one of them."""
    before, after = cases(old), cases(new)
    rows: list[tuple[str, ...]] = [HEAD]
    for key in before:
        if key not in after:
            continue
        found = verdict(before[key], after[key])
        if changed_only and found == "":
            continue
        rows.append(_row(before[key], after[key], found))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for name, these, those in (("old", before, after), ("new", after, before)):
        lines += [
            f"only in {name}: {' '.join(_named(these[key]))}" for key in these if key not in those
        ]
    return lines


def _row(old: Record, new: Record, found: str) -> tuple[str, ...]:
    case, who = _named(new)
    ratio = new["median_seconds"] / old["median_seconds"]
    return (
        case,
        who,
        _time(old),
        _time(new),
        f"{ratio:.2f}x",
        found,
        *(_memory(one) for one in (old, new)),
    )


def _named(record: Record) -> tuple[str, str]:
    what = record.get("op", "step")
    direction = record.get("direction", "")
    words = (what, reading.shape(record), record["dtype"], record["device"], direction)
    return " ".join(filter(None, words)), record.get("implementation") or record["variant"]


def _time(record: Record) -> str:
    unit, name = (1.0, "s") if record["median_seconds"] >= 1 else (1e3, "ms")
    spread = quartiles(record)
    noise = "" if spread is None else f" ± {unit * (spread[1] - spread[0]) / 2:.2g}"
    return f"{unit * record['median_seconds']:.3g}{noise} {name}"


def _memory(record: Record) -> str:
    found = record.get("extra_bytes", record.get("peak_bytes"))
    return "-" if found is None else f"{found / 2**20:,.1f} MiB"


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", help="results, or a commit")
    parser.add_argument("new", help="results, or a commit")
    parser.add_argument(
        "--fail-above", type=float, metavar="R", help="exit code 1 beyond this ratio"
    )
    parser.add_argument("--changed", action="store_true", help="leave out what stayed the same")
    given = parser.parse_args(argv)
    if given.fail_above is not None and not given.fail_above >= 1:
        raise ValueError(f"--fail-above: got {given.fail_above}, expected a ratio of 1 or more")
    old, new = (reading.read(reading.find(name)) for name in (given.old, given.new))
    for line in warnings(old, new):
        print(f"warning: {line}")
    before, after = cases(old), cases(new)
    common = [key for key in before if key in after]
    if not common:
        raise ValueError(f"{given.old} and {given.new} have no case in common")
    print(*table(old, new, changed_only=given.changed), sep="\n")
    verdicts = {key: verdict(before[key], after[key]) for key in common}
    counts = {name: list(verdicts.values()).count(name) for name in ("slower", "faster", "?")}
    print(
        f"{len(common)} cases in both: {counts['slower']} slower, {counts['faster']} faster, "
        f"{counts['?']} of too few rounds; slower or faster: middle halves apart, medians by more than {APART - 1:.0%}"
    )
    if given.fail_above is None:
        return
    failed = [
        key
        for key, found in verdicts.items()
        if found == "slower"
        and after[key]["median_seconds"] > given.fail_above * before[key]["median_seconds"]
    ]
    for key in failed:
        print(f"failed: {' '.join(_named(after[key]))} takes more than {given.fail_above:g}x")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, PROGRAM)
