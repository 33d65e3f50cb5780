"""Output that is read by nobody, or in an encoding that lacks characters."""

import io
import os
import subprocess
import sys

import pytest

from comet import predict
from comet.configuration import run_command

COUNTING = """
import sys
from pathlib import Path
from comet.streams import has_reader, prepare_output
prepare_output()
for number in range(20000):
    print("line", number, "ẹ̀kọ́")
    if number % 1000 == 0:
        print("noted", number, file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text(str(has_reader()))
"""


def piped(tmp_path, code, *options, **environment):
    """Start Python on some code, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, *options, "-c", code, str(tmp_path / "end")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_program_goes_on_quietly_when_its_readers_leave(tmp_path, options):
    process = piped(tmp_path, COUNTING, *options)
    assert process.stdout.readline().startswith(b"line 0 ")
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert errors.splitlines() == [f"noted {number}" for number in range(0, 20000, 1000)]
    assert (tmp_path / "end").read_text() == "False"


def test_so_it_does_when_nobody_reads_its_errors(tmp_path):
    process = piped(tmp_path, COUNTING)
    process.stderr.close()
    assert len(process.stdout.read().splitlines()) == 20000
    assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "True"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii", "utf-8"])
def test_no_encoding_ends_a_program(tmp_path, encoding):
    process = piped(tmp_path, COUNTING, PYTHONIOENCODING=encoding)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    first = output.decode(encoding).splitlines()[0]
    assert first == ("line 0 ẹ̀kọ́" if encoding == "utf-8" else first)
    assert first.encode("ascii", "backslashreplace").decode("ascii").startswith("line 0 \\u1eb9")


def test_predictions_are_in_utf_8_whatever_the_terminal(monkeypatch, sentiment, tmp_path):
    class Stub:
        kind, choice = "sequence", None

        def __init__(self, *given, **more):
            pass

        def predict(self, texts):
            return [None for _ in texts]

    monkeypatch.setattr(predict, "Classifier", Stub)
    monkeypatch.setattr(predict, "_input", lambda: io.BytesIO("ẹ̀kọ́\n".encode()))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    predict.main(["--model", "m"])
    sys.stdout.flush()
    assert "ẹ̀kọ́".encode() in written.getvalue()


def test_ctrl_c_before_training_says_so(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["comet.distill"])
    with pytest.raises(SystemExit) as ended:
        run_command(stopped, "comet.distill")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "comet.distill: interrupted\n"
