"""Speed and memory of ops and steps as figures, from saved results.

    python -m bench.plot [FILE ...] [--output DIR]

A FILE is one that `--save` wrote, or the beginning of its commit; by default the newest of every machine. For every op,
device and dtype, and for every size that was varied, a figure shows time, extra memory and the share of the ceiling, a
line for each implementation; the ceiling is what copies or matrix products reached in the same run, whichever binds.
Whole steps are shown by part, and as they grow with batch, length and vocabulary. Every figure is written as PNG and
SVG, light and dark: `<machine>-<what>-<light or dark>.<png or svg>`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import reading
from bench.results import Record, slug
from comet.configuration import run_command

PROGRAM = "bench.plot"
OUTPUT = Path("docs/performance")


def figures(found: Record) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Names, and files by their kind."""
    from bench import charts  # asks for matplotlib, which the other commands do without

    hardware = found["hardware"]
    threads = "" if "gpu" in hardware else f", {hardware.get('threads')} threads"
    about = f"{found['machine']}{threads}, commit {found['commit']}"
    for theme in charts.THEMES:
        for sweep in reading.op_sweeps(found["ops"]):
            name = f"{sweep.what}-{sweep.size}-{sweep.device}-{sweep.dtype}-{theme}"
            yield name, charts.draw_sweep(sweep, found["ceilings"], about, theme)
        steps = reading.step_sweeps(found["steps"])
        for device, dtype in dict.fromkeys((one.device, one.dtype) for one in steps):
            same = [one for one in steps if (one.device, one.dtype) == (device, dtype)]
            yield f"step-growth-{device}-{dtype}-{theme}", charts.draw_growth(same, about, theme)
        for records in reading.side_by_side(found["steps"]):
            device, dtype = records[0]["device"], records[0]["dtype"]
            sizes = records[0]["sizes"]
            shape = (
                f"{sizes['batch']} × {sizes['length']} tokens, vocabulary {sizes['vocabulary']:,}"
            )
            described = f"{shape}; {about}"
            name = f"step-parts-{device}-{dtype}-{theme}"
            yield name, charts.draw_parts(records, described, theme)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="results, or a commit")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder ({OUTPUT})")
    given = parser.parse_args(argv)
    results = reading.given(given.files)
    drawn: dict[str, Path] = {}
    for path, found in results:
        for name, files in figures(found):
            stem = f"{slug(found['machine'])}-{name}"
            if stem in drawn:
                raise ValueError(f"{path}: {drawn[stem]} has the same of this machine; give one")
            drawn[stem] = path
            given.output.mkdir(parents=True, exist_ok=True)
            for kind, content in files.items():
                (given.output / f"{stem}.{kind}").write_bytes(content)
    if not drawn:
        raise ValueError(
            f"{', '.join(path.name for path, _ in results)}: nothing to draw: no size of an op was varied "
            "(pytest bench/ --sweep --save), and no step timed by part (python -m bench.bench_step --save)"
        )
    print(f"{len(drawn)} figures in {given.output}")


if __name__ == "__main__":
    run_command(main, PROGRAM)
