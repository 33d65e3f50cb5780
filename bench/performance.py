"""The measured tables of README.md and docs/performance.md, from saved results only.

    python -m bench.performance [FILE ...] [--tokens N] [--write README.md docs/performance.md]

A FILE is one that `--save` wrote, or the beginning of its commit; by default the newest of every machine. Prints the
tables, or puts each between `<!-- measured NAME -->` and `<!-- end -->` of the pages that have such marks:

    ops         forward and backward of every op, beside plain torch and the best peer
    directions  the same forward, backward and without gradients
    step        whole steps side by side
    parts       where their time goes
    growth      plain and fused at other batches, lengths and vocabularies
    cost        the hours that N tokens take at the tokens per second of the saved steps

What has not been measured is said to be missing.
"""

import argparse
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import kernel_times, reading
from bench.parts import PARTS
from bench.results import Record
from comet.configuration import run_command

PROGRAM = "bench.performance"
PAGE = Path("docs/performance.md")
TOKENS = 100_000 * 32 * 128  # of the recipe `paper`: steps, sequences, tokens of each
GPUS = 8
LINK_BYTES_PER_SECOND = 450e9  # one direction of an H200's NVLink, by its data sheet
END = "<!-- end -->"
Found = tuple[Path, Record]


def ops_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """For every case forward and backward: Comet's time and memory, ratios to the others, how far from the floor."""
    yield "| op | shape | time | plain torch | best peer | floor ÷ time | extra memory, plain torch → Comet | from |"
    yield _rule(8)
    lines = 0
    for path, found in results:
        both = [one for one in _of_interest(found["ops"]) if one["direction"] == "both"]
        for records in reading.grouped(both, _case).values():
            comet = _one(records, "comet")
            if comet is None:
                continue
            floor = reading.floor_seconds(comet, found["ceilings"])
            yield _row(
                f"`{comet['op']}`",
                f"{reading.shape(comet)}; {comet['dtype']}, {comet['device']}",
                _time(comet["median_seconds"]),
                *_against_others(records, comet),
                "-" if floor is None else f"{floor / comet['median_seconds']:.0%}",
                f"{_mebibytes(_one(records, 'torch'))} → {_mebibytes(comet)} MiB",
                _link(path, page),
            )
            lines += 1
    if not lines:
        yield _row("not measured yet: `pytest bench/ --save`", *[""] * 7)
    yield from _without_gpu(results, "ops", 8)


def directions_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """For every case and direction: Comet's time, and how many times as long plain torch takes."""
    directions = ("forward", "backward", "no-grad")
    yield f"| op | shape | {' | '.join(directions)} | from |"
    yield _rule(6)
    lines = 0
    for path, found in results:
        alone = [one for one in _of_interest(found["ops"]) if one["direction"] in directions]
        for records in reading.grouped(alone, _case).values():
            cells = []
            for direction in directions:
                same = [one for one in records if one["direction"] == direction]
                comet = _one(same, "comet")
                cells.append(
                    "-"
                    if comet is None
                    else f"{_time(comet['median_seconds'])}, {_ratio(_one(same, 'torch'), comet)}"
                )
            first = records[0]
            shape = f"{reading.shape(first)}; {first['dtype']}, {first['device']}"
            yield _row(f"`{first['op']}`", shape, *cells, _link(path, page))
            lines += 1
    if not lines:
        yield _row("not measured yet: `pytest bench/ --save`", *[""] * 5)


def step_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """The variants side by side, where most of them were measured: time, rate, memory, and ratios to the plain one."""
    yield "| step | time | tokens/s | times plain's | peak memory | of plain's | from |"
    yield _rule(7)
    lines = 0
    for path, found in results:
        for records in reading.side_by_side(found["steps"]):
            plain = _variant(records, "plain")
            for record in records:
                yield _row(
                    f"{record['variant']}, {_of_step(record)}",
                    _time(record["median_seconds"]),
                    f"{record['tokens_per_second']:,.0f}",
                    _times(plain, record, "tokens_per_second"),
                    _gibibytes(record),
                    _times(plain, record, "peak_bytes"),
                    _link(path, page),
                )
                lines += 1
    if not lines:
        yield _row("not measured yet: `python -m bench.bench_step --save`", *[""] * 6)
    yield from _without_gpu(results, "steps", 7)


def parts_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """Milliseconds of each part of the same steps."""
    yield f"| step | {' | '.join(PARTS)} | from |"
    yield _rule(len(PARTS) + 2)
    lines = 0
    for path, found in results:
        for records in reading.side_by_side(found["steps"]):
            for record in records:
                parts = (record.get("parts", {}).get(part) for part in PARTS)
                yield _row(
                    f"{record['variant']}, {_of_step(record)}",
                    *("-" if seconds is None else f"{1e3 * seconds:,.1f}" for seconds in parts),
                    _link(path, page),
                )
                lines += 1
    if not lines:
        empty = [""] * (len(PARTS) + 1)
        yield _row("not measured yet: `python -m bench.bench_step --save`", *empty)


def growth_table(results: Sequence[Found], page: Path = PAGE) -> Iterator[str]:
    """Plain and fused steps at every size that both or either was measured at."""
    variants = ("plain", "fused")
    yield (
        "| batch × length, vocabulary | plain, tokens/s | fused, tokens/s | times plain's "
        "| plain, peak memory | fused, peak memory | from |"
    )
    yield _rule(7)
    lines = 0
    for path, found in results:
        steps = sorted(found["steps"], key=lambda one: list(one["sizes"].values()))
        for records in reading.grouped(steps, _case).values():
            plain, fused = (_variant(records, name) for name in variants)
            if fused is None:
                continue
            rates = (f"{one['tokens_per_second']:,.0f}" if one else "-" for one in (plain, fused))
            yield _row(
                _of_step(fused),
                *rates,
                _times(plain, fused, "tokens_per_second"),
                *(_gibibytes(one) if one else "-" for one in (plain, fused)),
                _link(path, page),
            )
            lines += 1
    if not lines:
        yield _row("not measured yet: `python -m bench.bench_step --sweep --save`", *[""] * 6)
    yield from _without_gpu(results, "steps", 7)


def cost_table(results: Sequence[Found], tokens: int, page: Path = PAGE) -> Iterator[str]:
    """Device-hours of N tokens at each step's rate, and for GPUs the hours of eight, gradients sent included."""
    yield (
        f"| step | tokens/s | hours for {tokens:,} tokens | hours for 10⁹ "
        f"| {GPUS} GPUs: hours | GPU-hours | from |"
    )
    yield _rule(7)
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
            yield _row(
                f"{variant}, {sizes['batch']} × {sizes['length']}; {dtype}, {device}",
                f"{rate:,.0f}",
                f"{hours:,.3g}",
                f"{1e9 / rate / 3600:,.3g}",
                *eight,
                _link(path, page),
            )
            lines += 1
    if not lines:
        yield _row("not measured yet: `python -m bench.bench_step --save`", *[""] * 6)
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


def written(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """A page with tables in place of what stood between their marks.

    Raises:
        ValueError: it has none of them, or one without an end.
    """
    there = [name for name in tables if _start(name) in text]
    if not there:
        raise ValueError(f"--write: the page has none of {', '.join(map(_start, tables))}")
    for name in there:
        pattern = re.compile(f"{re.escape(_start(name))}.*?{re.escape(END)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"--write: no {END} follows the page's {_start(name)}")
        content = "\n".join((_start(name), "", *tables[name], "", END))
        before, after = pattern.split(text, maxsplit=1)
        text = before + content + after
    return text


def _start(name: str) -> str:
    return f"<!-- measured {name} -->"


def _of_interest(ops: Sequence[Record]) -> list[Record]:
    """Those of the sizes that `pytest bench/` measures, in order; a sweep adds others, for plots."""
    cases = [
        _case({**asdict(case), "op": module.OP.name, "dtype": case.dtype_name})
        for module in map(importlib.import_module, kernel_times.modules().values())
        for case in module.CASES
    ]
    return sorted(
        (one for one in ops if _case(one) in cases), key=lambda one: cases.index(_case(one))
    )


def _case(record: Mapping[str, Any]) -> tuple[str, ...]:
    return record.get("op", "step"), reading.shape(record), record["dtype"], record["device"]


def _of_step(record: Record) -> str:
    sizes = record["sizes"]
    shape = f"{sizes['batch']} × {sizes['length']}, {sizes['vocabulary']:,}"
    return f"{shape}; {record['dtype']}, {record['device']}"


def _variant(records: Sequence[Record], name: str) -> Record | None:
    return next((one for one in records if one["variant"] == name), None)


def _times(plain: Record | None, record: Record, field: str) -> str:
    return "-" if plain is None else f"{record[field] / plain[field]:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return _row(*["---"] * columns)


def _one(records: Sequence[Record], implementation: str) -> Record | None:
    return next((one for one in records if one["implementation"] == implementation), None)


def _against_others(records: Sequence[Record], comet: Record) -> tuple[str, str]:
    """How many times as long plain torch, and the fastest peer, take."""
    peers = [one for one in records if one.get("peer")]
    best = min(peers, key=lambda one: one["median_seconds"], default=None)
    peer = "-" if best is None else f"{_ratio(best, comet)} ({best['implementation']})"
    return _ratio(_one(records, "torch"), comet), peer


def _ratio(other: Record | None, comet: Record) -> str:
    if other is None:
        return "-"
    return f"{other['median_seconds'] / comet['median_seconds']:.2f}x"


def _gibibytes(record: Record) -> str:
    return f"{record['peak_bytes'] / 2**30:.2f} GiB"


def _mebibytes(record: Record | None) -> str:
    found = None if record is None else record["extra_bytes"]
    return "-" if found is None else f"{found / 2**20:,.0f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _link(path: Path, page: Path) -> str:
    target = Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()
    return f"[{path.stem.rpartition('-')[2]}]({target})"


def _without_gpu(results: Sequence[Found], section: str, columns: int) -> Iterator[str]:
    """Says so where no record of a section comes from a GPU."""
    if not any(one["device"] == "cuda" for _, found in results for one in found[section]):
        missing = "on a GPU: missing until one has measured it (`bench/gpu.sh`)"
        yield _row(missing, *[""] * (columns - 1))


def tables_of(results: Sequence[Found], tokens: int, page: Path) -> dict[str, list[str]]:
    """All of them by name, with links as seen from the page."""
    return {
        "ops": list(ops_table(results, page)),
        "directions": list(directions_table(results, page)),
        "step": list(step_table(results, page)),
        "parts": list(parts_table(results, page)),
        "growth": list(growth_table(results, page)),
        "cost": list(cost_table(results, tokens, page)),
    }


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="results, or a commit")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of a run ({TOKENS})")
    parser.add_argument(
        "--write", type=Path, nargs="+", metavar="PAGE", help="put the tables there"
    )
    given = parser.parse_args(argv)
    if given.tokens < 1:
        raise ValueError(f"--tokens: got {given.tokens}, expected 1 or more")
    results = reading.given(given.files)
    if given.write is None:
        tables = tables_of(results, given.tokens, PAGE)
        print("\n\n".join("\n".join(lines) for lines in tables.values()))
        return
    texts = {
        page: written(page.read_text(encoding="utf-8"), tables_of(results, given.tokens, page))
        for page in given.write
    }
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page} from {', '.join(path.name for path, _ in results)}")


if __name__ == "__main__":
    run_command(main, PROGRAM)
