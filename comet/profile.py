"""`python -m comet.profile`: what a model costs in parameters, bytes and time, alone or against another.

    python -m comet.profile --model runs/sentiment --against runs/teacher-sentiment
    python -m comet.profile --model shape:paper-student --against shape:paper-teacher
    python -m comet.profile --projection

Models are read in turns within one run, so that what slows the machine for a while slows both. With `--projection` it
tells what each kind of projection of attention maps costs, on paper.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from comet.configuration import CommandParser, run_command
from comet.durable import file_aside, write_json
from comet.processes import named_device
from comet.profiles import projection_costs
from comet.profiles.models import find
from comet.profiles.profile import FLAGS, Settings, profile
from comet.profiles.table import table
from comet.profiles.timing import FEWEST, Patience

PROGRAM = "comet.profile"


def main(argv: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: something the user can mend, in one line; nothing is written then.
    """
    if "--projection" in argv:
        projection_costs.print_costs(projection_costs.read_command(argv, PROGRAM))
        return
    given = _parser().parse_args(list(argv))
    settings = _settings(given)
    written = _Written(given.json, given.plot)
    models = [
        find(name, given.language, flag=flag)
        for flag, name in zip(FLAGS, (given.model, given.against), strict=True)
        if name is not None
    ]
    for model in models:
        if model.choice:
            print(f"{PROGRAM}: {model.choice}", file=sys.stderr)
    torch.set_num_threads(settings.threads)
    with _saying() as say:
        found = profile(models, settings, say)
    print(table(found), flush=True)
    written.write(found)


class _Written:
    """The files that are asked for; that they can be written is known before anything is measured."""

    def __init__(self, json_file: Path | None, plot: Path | None) -> None:
        self._json, self._plot = json_file, plot
        if plot is not None:
            from comet.profiles.plot import draw, require_kind  # needs matplotlib

            self._draw, self._kind = draw, require_kind(plot)
        if plot is not None and plot == json_file:
            raise ValueError(f"--plot: {plot} is the file of --json; name another")
        for flag, file in (("--json", json_file), ("--plot", plot)):
            if file is None:
                continue
            if file.exists():
                raise ValueError(f"{flag}: {file} exists; name another file")
            parent = file.absolute().parent
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise ValueError(f"{flag}: {parent} is not a folder that can be written to")

    def write(self, found: dict[str, Any]) -> None:
        if self._json is not None:
            write_json(self._json, found)
            print(f"\nfigures  {self._json}", flush=True)
        if self._plot is not None:
            with file_aside(self._plot) as partial:
                partial.write_bytes(self._draw(found, self._kind))
            print(f"plot     {self._plot}", flush=True)


@contextlib.contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """What is done now: one line that changes on a terminal, plain lines elsewhere, and never among the figures."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    with tqdm(bar_format="{desc} {elapsed}", leave=False) as bar:
        yield bar.set_description_str


def _settings(given: argparse.Namespace) -> Settings:
    for name, values in (
        ("lengths", given.lengths),
        ("batch", [given.batch]),
        ("passes", [given.passes]),
        ("threads", [] if given.threads is None else [given.threads]),
    ):
        for value in values:
            if value < 1:
                raise ValueError(f"--{name}: got {value}, expected 1 or more")
    if not given.seconds > 0:
        raise ValueError(f"--seconds: got {given.seconds}, expected a number above 0")
    return Settings(
        lengths=sorted(set(given.lengths)),
        batch=given.batch,
        threads=given.threads or torch.get_num_threads(),
        device=named_device(given.device),
        latency=Patience(given.passes, given.seconds),
        throughput=Patience(max(FEWEST, given.passes // 5), given.seconds),
    )


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=f"python -m {PROGRAM}",
        description="What a model costs in parameters, bytes and time, alone or against another.",
        epilog="--projection instead: what each kind of projection of attention maps costs (--projection --help).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="a model's folder, also one exported to ONNX; a run of comet.finetune, whose best seed on dev is taken; "
        "or a shape with random weights: shape:paper-student, shape:paper-teacher, "
        "shape:LAYERSxHIDDEN,HEADS,INTERMEDIATE,VOCABULARY",
    )
    parser.add_argument("--against", metavar="M", help="another, measured in turns with the first")
    parser.add_argument(
        "--language", metavar="CODE", help="of the model, where a run has one for each"
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="N",
        help="tokens per sequence (default: 16 32 64 128)",
    )
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="sequences of throughput (default: 8)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="that compute (default: as torch chooses)"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda:0 (default: cpu)")
    parser.add_argument(
        "--passes",
        type=int,
        default=50,
        metavar="N",
        help="of each model at each length, a fifth of that in throughput (default: 50)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="X",
        help="at each length, after which no more turns begin (default: 20)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them here: .svg or .png (extra report)"
    )
    return parser


if __name__ == "__main__":
    run_command(main, PROGRAM, alone=True)
