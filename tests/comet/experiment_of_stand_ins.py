"""`comet.experiment` whose stages are stand-ins: to be started in processes of its own."""

import sys
from pathlib import Path

from comet import experiment

PYTHON = [sys.executable, str(Path(__file__).with_name("stand_in_stages.py"))]


def main(argv):
    experiment.main(argv, PYTHON)
