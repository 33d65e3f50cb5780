"""The measured tables of docs/performance.md, from saved results only.

    python -m bench.performance [FILE ...] [--tokens N] [--write docs/performance.md]

A FILE is one that `--save` wrote, or the beginning of its commit; by default the newest of every machine. Prints the
tables, or puts them between the page's `<!-- measured NAME -->` and `<!-- end -->`: `ops`, `steps`, and `cost`, the
hours that N tokens take at the tokens per second of the saved steps. What has not been measured is said to be missing.
"""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import reading
from bench.results import Record
from comet.configuration import run_command

PROGRAM = "bench.performance"
PAGE = Path("docs/performance.md")
TOKENS = 100_000 * 32 * 128  # of the recipe `paper`: steps, sequences, tokens of each
FLOORS = ("products",)
GPUS = 8
LINK_BYTES_PER_SECOND = 450e9  # one direction of an H200's NVLink, by its data sheet
Found = tuple[Path, Record]


def ops_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """For every case forward and backward: Comet's time and memory, ratios to the others, how far from the floor."""
    yield "| op | shape | time | plain torch | best peer | floor ÷ time | extra memory, plain torch → Comet | from |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    lines = 0
    for path, found in results:
        both = [one for one in found["ops"] if one["direction"] == "both"]
        for records in reading.grouped(both, _case).values():
            comet = _one(records, "comet")
            if comet is None:
                continue
            torch = _one(records, "torch")
            peers = [one for one in records if one.get("peer")]
            best = min(peers, key=lambda one: one["median_seconds"], default=None)
            floor = reading.floor_seconds(comet, found["ceilings"])
            memory = f"{_mebibytes(torch)} → {_mebibytes(comet)} MiB"
            cells = (
                f"`{comet['op']}`",
                f"{reading.shape(comet)}; {comet['dtype']}, {comet['device']}",
                _time(comet["median_seconds"]),
                _ratio(torch, comet),
                "-" if best is None else f"{_ratio(best, comet)} ({best['implementation']})",
                "-" if floor is None else f"{floor / comet['median_seconds']:.0%}",
                memory,
                _link(path, page),
            )
            yield f"| {' | '.join(cells)} |"
            lines += 1
    if not lines:
        yield "| not measured yet: `pytest bench/ --save` | | | | | | | |"
    yield from _without_gpu(results, "ops", 8)


def steps_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """Every saved step: time, rate, memory, and the ratio to the plain one of the same sizes."""
    yield "| step | batch × length, vocabulary | time | tokens/s | of plain's | peak memory | from |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    lines = 0
    for path, found in results:
        for records in reading.grouped(found["steps"], _case).values():
            plain = next((one for one in records if one["variant"] == "plain"), None)
            for record in records:
                sizes = record["sizes"]
                ratio = (
                    "-"
                    if plain is None
                    else f"{record['tokens_per_second'] / plain['tokens_per_second']:.2f}"
                )
                cells = (
                    record["variant"],
                    f"{sizes['batch']} × {sizes['length']}, {sizes['vocabulary']:,}; "
                    f"{record['dtype']}, {record['device']}",
                    _time(record["median_seconds"]),
                    f"{record['tokens_per_second']:,.0f}",
                    ratio,
                    f"{record['peak_bytes'] / 2**30:.2f} GiB",
                    _link(path, page),
                )
                yield f"| {' | '.join(cells)} |"
                lines += 1
    if not lines:
        yield "| not measured yet: `python -m bench.bench_step --save` | | | | | | |"
    yield from _without_gpu(results, "steps", 7)


def cost_table(results: Sequence[Found], tokens: int, page: Path = PAGE) -> Iterator[str]:
    """Device-hours of N tokens at each step's rate, and for GPUs the hours of eight, gradients sent included."""
    yield (
        f"| step | tokens/s | hours for {tokens:,} tokens | hours for 10⁹ "
        f"| {GPUS} GPUs: hours | GPU-hours | from |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    lines = 0
    for path, found in results:
        kinds = reading.grouped(
            found["steps"], lambda one: (one["variant"], one["dtype"], one["device"])
        )
        for (variant, dtype, device), records in kinds.items():
            if variant not in ("plain", "fused") or not (shown := _paper_sized(records)):
                continue
            best = max(shown, key=lambda one: one["tokens_per_second"])
            rate, sizes = best["tokens_per_second"], best["sizes"]
            hours = tokens / rate / 3600
            eight = ("-", "-")
            if device == "cuda":
                slowed = 1 + sending_seconds(best) / best["median_seconds"]
                eight = (f"{hours * slowed / GPUS:,.3g}", f"{hours * slowed:,.3g}")
            cells = (
                f"{variant}, {sizes['batch']} × {sizes['length']}; {dtype}, {device}",
                f"{rate:,.0f}",
                f"{hours:,.3g}",
                f"{1e9 / rate / 3600:,.3g}",
                *eight,
                _link(path, page),
            )
            yield f"| {' | '.join(cells)} |"
            lines += 1
    if not lines:
        yield "| not measured yet: `python -m bench.bench_step --save` | | | | | | |"
    yield from _without_gpu(results, "steps", 7)


def sending_seconds(record: Record) -> float:
    """What a ring over eight GPUs sends and receives of a step's float32 gradients takes, nothing of it hidden.

    2 (n - 1) / n of the gradients' bytes go through every link. The paper's student has 69,187,730 parameters; of the
    projection, plain's dense matrix has S⁴ and Comet's factors 8 S².
    """
    length = record["sizes"]["length"]
    projection = length**4 if record["variant"] == "plain" else 8 * length**2
    gradients = 4 * (69_187_730 + projection)
    return 2 * (GPUS - 1) / GPUS * gradients / LINK_BYTES_PER_SECOND


def _paper_sized(records: Sequence[Record]) -> list[Record]:
    """Of the paper's length and vocabulary; a sweep has others."""
    wanted = {"length": 128, "vocabulary": 250_002}
    return [
        one
        for one in records
        if all(one["sizes"].get(name) == size for name, size in wanted.items())
    ]


def written(text: str, tables: dict[str, list[str]]) -> str:
    """The page with its tables in place of what stood between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    for name, lines in tables.items():
        start, end = f"<!-- measured {name} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"--write: the page has no {start} ... {end}")
        content = "\n".join((start, "", *lines, "", end))
        before, after = pattern.split(text, maxsplit=1)
        text = before + content + after
    return text


def _case(record: Record) -> tuple[str, ...]:
    return record.get("op", "step"), reading.shape(record), record["dtype"], record["device"]


def _one(records: Sequence[Record], implementation: str) -> Record | None:
    return next((one for one in records if one["implementation"] == implementation), None)


def _ratio(other: Record | None, comet: Record) -> str:
    if other is None:
        return "-"
    return f"{other['median_seconds'] / comet['median_seconds']:.2f}x"


def _mebibytes(record: Record | None) -> str:
    found = None if record is None else record["extra_bytes"]
    return "-" if found is None else f"{found / 2**20:,.0f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _link(path: Path, page: Path) -> str:
    target = Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()
    return f"[{path.stem}]({target})"


def _without_gpu(results: Sequence[Found], section: str, columns: int) -> Iterator[str]:
    """Says so where no record of a section comes from a GPU."""
    if not any(one["device"] == "cuda" for _, found in results for one in found[section]):
        yield f"| on a GPU: missing until one has measured it (`bench/gpu.sh`) |{' |' * (columns - 1)}"


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="results, or a commit")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of a run ({TOKENS})")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables there")
    given = parser.parse_args(argv)
    if given.tokens < 1:
        raise ValueError(f"--tokens: got {given.tokens}, expected 1 or more")
    paths = [reading.find(name) for name in given.files] or reading.newest()
    results = [(path, reading.read(path)) for path in paths]
    page = given.write or PAGE
    tables = {
        "ops": list(ops_table(results, page)),
        "steps": list(steps_table(results, page)),
        "cost": list(cost_table(results, given.tokens, page)),
    }
    if given.write is None:
        print("\n\n".join("\n".join(lines) for lines in tables.values()))
        return
    text = given.write.read_text(encoding="utf-8")
    given.write.write_text(written(text, tables), encoding="utf-8")
    print(f"wrote {given.write} from {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    run_command(main, PROGRAM)
