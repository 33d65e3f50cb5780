"""Program for several processes: command lines one after another, each as `python -m PROGRAM` runs it."""

import json
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import comet


def main(argv: Sequence[str]) -> None:
    """Run the command lines of a JSON file, each process in a folder of its own: empty but for the main one's."""
    commands = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    machine = Path(argv[0]).parent / f"machine-{os.environ['RANK']}"
    machine.mkdir(exist_ok=True)
    os.chdir(machine)
    os.environ["COMET_CACHE"] = str(machine / "cache")
    os.environ["PYTHONPATH"] = str(Path(comet.__file__).parents[1])  # for processes that it starts
    warnings.simplefilter("ignore")  # of modules that were imported before
    for program, *arguments in commands:
        sys.argv = [program, *arguments]
        print("$", *sys.argv, flush=True)
        try:
            runpy.run_module(program, run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise
