"""The real data of the measurements, where it is: the folder COMET_DATA, or shared/data beside the repository."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("COMET_DATA") or Path(__file__).resolve().parents[3] / "shared/data")
needs_real_data = pytest.mark.skipif(
    not (DATA / "afrisenti").is_dir(),
    reason=f"no real data in {DATA}; set COMET_DATA to its folder",
)
