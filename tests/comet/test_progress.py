import io
import sys

import pytest

from comet import progress
from comet.progress import Progress, in_words


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    return now


def metrics(step, loss=2.5, rate=12345.6):
    return {"step": step, "loss": loss, "tokens_per_second": rate}


def test_lines_tell_loss_rate_and_time_left(clock, capsys):
    with Progress(100, 0, " (entropy 3)") as shown:
        clock[0] += 60
        shown.show(metrics(10))
        clock[0] += 540
        shown.show(metrics(100))
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 10/100: loss 2.5000 (entropy 3), 12,346 tokens/s, about 9 min left"
    assert last == "step 100/100: loss 2.5000 (entropy 3), 12,346 tokens/s"


def test_steps_of_an_earlier_process_do_not_count_as_fast(clock, capsys):
    with Progress(100, 80) as shown:
        clock[0] += 10
        shown.show(metrics(90))
    assert "about 10 s left" in capsys.readouterr().out


def test_slow_first_steps_are_forgotten(clock, capsys):
    with Progress(1000, 0) as shown:
        clock[0] += 100
        shown.show(metrics(10))
        for step in range(20, 501, 10):
            clock[0] += 10
            shown.show(metrics(step))
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "about 2 h 45 min left" in first
    assert "about 8 min left" in last  # 500 steps at one a second, and a little for the beginning


def test_a_terminal_gets_a_bar_which_a_warning_does_not_tear(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress(100, 0) as shown:
        clock[0] += 60
        shown.show(metrics(10))
        shown.say("warning: hau gets no better")
        clock[0] += 60
        shown.show(metrics(20))
    text = terminal.getvalue()
    line = next(line for line in text.split("\n") if "hau" in line)
    assert line.split("\r")[-1] == "warning: hau gets no better"
    drawn = [piece.strip() for piece in text.replace("\n", "\r").split("\r")]
    bar = [piece for piece in drawn if "20/100" in piece and "loss" in piece][-1]
    assert bar.endswith("20/100, loss 2.5000, 12,346 tokens/s, about 8 min left")
    assert "step 10/100" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_are_silent(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress(10, 0, enabled=False) as shown:
        shown.show(metrics(5))
        shown.say("warning")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (190000, "2 d 4 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
