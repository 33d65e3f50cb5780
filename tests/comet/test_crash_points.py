"""Commands that are killed at any operation on a file, and started again as they say, end as if they had not been.

A few points of each command; all of them with COMET_CRASH_POINTS=all, or some with COMET_CRASH_POINTS=1-50.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal

import pytest
import torch
from runs_in_processes import start
from safetensors.torch import save_file
from tiny import TINY_RUN
from tiny_tasks import write_sentiment
from tuned_models import save_tiny

SAMPLED = 1
_TIMED = {
    "run.json", "metrics.jsonl", "evaluation.jsonl", "README.md", "index.json", "export.json", "budget.json",
    "experiment.json", "table.md",
}  # fmt: skip


class Command:
    """A command line on small inputs.

    Args:
        program: the module.
        arguments: but for what names the output.
        output: how that is named.
        resumes: whether it takes --resume.
    """

    # what was killed after its last file stood needs nothing more
    ENDED = "is done|exists; name another|holds another run; give another --output"
    NOT_YET = "start it again without --resume|or leave out --resume"

    def __init__(self, program, arguments, *, output="--output", resumes=False):
        self.program, self.arguments = program, [str(one) for one in arguments]
        self.output, self.resumes = output, resumes

    def run(self, folder, *more, **watched):
        """Run it to its end or death; returns its exit code and what it printed."""
        log = folder / "log"
        given = [*(more or self.arguments), self.output, str(folder / "made" / "output")]
        watched = {"root": str(folder / "made"), "log": str(folder / "operations"), **watched}
        process = start(
            given,
            log,
            self.program,
            WATCHED=json.dumps(watched),
            COMET_CACHE=str(folder / "made" / "cache"),
        )
        process.join(120)
        return process.exitcode, log.read_text()

    def again(self, folder, *, resume_first):
        """Start it again, as whoever it was killed for would, following what it says."""
        tries = [[], ["--resume"]] if self.resumes else [[]]
        if resume_first:
            tries.reverse()
        said = []
        for more in tries:
            code, text = self.run(folder, *more)
            said.append(text)
            assert "Traceback" not in text, text
            if code == 0 or re.search(self.ENDED, text):
                return
            assert code == 2, text
            assert re.search(self.NOT_YET if more else "add --resume", text), text
        raise AssertionError("\n".join(said))


@pytest.fixture(scope="module")
def commands(teacher_folder, corpus_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    data = write_sentiment(folder / "data", ("hau",), {"train": 24, "dev": 12, "test": 12})
    save_tiny(folder / "tuned", tokenizer)
    torch.manual_seed(0)
    save_file({"weight": torch.rand(64, 64)}, folder / "dense.safetensors")
    from_teacher = ["--teacher", teacher_folder, "--corpus", corpus_folder, *TINY_RUN]
    short = ["--steps", "4", "--run.checkpoint_every", "2", "--run.keep_checkpoints", "1"]
    tune = [
        "--data", data, "--languages", "hau", "--epochs", "2", "--batch-size", "8", "--learning-rate", "1e-3",
        "--model.max_length", "16", "--run.evaluate_every", "3", "--run.checkpoint_every", "3", "--run.log_every", "2",
    ]  # fmt: skip
    return {
        "distill": Command("comet.distill", [*from_teacher, *short], resumes=True),
        "distill trimmed": Command(
            "comet.distill", [*from_teacher, *short, "--trim", "250"], resumes=True
        ),
        "adapt": Command(
            "comet.adapt",
            [
                "--corpus", corpus_folder, *short, "--model.layers", "1", "--model.hidden_size", "16",
                "--model.heads", "2", "--model.intermediate_size", "24", "--model.vocabulary_size", "200",
                "--model.positions", "40", "--corpus.max_length", "24", "--corpus.held_out", "8",
                "--warm_start.steps", "2", "--warm_start.max_length", "12", "--optimisation.warmup_steps", "1",
                "--batch-size", "8", "--corpus.workers", "0",
            ],
            resumes=True,
        ),
        "cache_teacher": Command("comet.cache_teacher", [*from_teacher, "--steps", "3"]),
        "initialise": Command("comet.initialise", from_teacher),
        "finetune": Command("comet.finetune", ["--model", teacher_folder, *tune], resumes=True),
        "finetune floor": Command(
            "comet.finetune",
            ["--model", teacher_folder, *tune, "--objective.floor_weight", "1"],
            resumes=True,
        ),
        "finetune tfidf": Command(
            "comet.finetune", ["--model", "tfidf", "--data", data, "--languages", "hau"], resumes=True
        ),
        "trim": Command(
            "comet.trim",
            ["--model", teacher_folder, "--corpus", corpus_folder, "--size", "250"],
        ),
        "export": Command(
            "comet.export", ["--model", folder / "tuned", "--format", "safetensors"]
        ),
        "export onnx": Command(
            "comet.export", ["--model", folder / "tuned", "--format", "onnx", "--int8"]
        ),
        "factorize": Command("comet.factorize", [folder / "dense.safetensors", "--terms", "2"]),
        "evaluate": Command(
            "comet.evaluate",
            ["--model", folder / "tuned", "--data", data, "--languages", "hau", "--floor", "tfidf"],
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """What a command makes and does that nothing happens to."""
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            (folder / "made").mkdir()
            code, said = commands[name].run(folder)
            assert code == 0, said
            found = contents(folder / "made")
            assert not [one for one in found if one.endswith((".partial", ".old"))]
            known[name] = found, (folder / "operations").read_text().splitlines()
        return known[name]

    return of


def require_same(found, expected):
    """The same files, with the same in them."""
    differing = {
        name: (name in found, name in expected)
        for name in found.keys() | expected.keys()
        if found.get(name, 0) != expected.get(name, 0)
    }
    assert not differing


def contents(made):
    """Every file, with a hash of what it holds unless that tells the time."""
    found = {}
    for path in sorted(made.rglob("*")):
        name = path.relative_to(made).as_posix()
        if path.is_file():
            timed = path.name in _TIMED or path.name.endswith(".lock") or "checkpoints" in name
            timed = timed and path.suffix != ".safetensors"
            found[name] = None if timed else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def points(count, name):
    """The operations to be killed at: all, or a few."""
    wanted = os.environ.get("COMET_CRASH_POINTS", "")
    if wanted == "all":
        return range(1, count + 1)
    if wanted:
        first, last = map(int, wanted.split("-"))
        return range(first, min(last, count) + 1)
    return sorted(random.Random(name).sample(range(1, count + 1), min(SAMPLED, count)))


NAMES = [
    "distill", "adapt", "cache_teacher", "initialise", "finetune", "finetune tfidf", "trim", "export", "factorize",
    "evaluate",
]  # fmt: skip
if "COMET_CRASH_POINTS" in os.environ:
    NAMES += ["distill trimmed", "finetune floor", "export onnx"]


@pytest.mark.slow
@pytest.mark.timeout(0 if "COMET_CRASH_POINTS" in os.environ else 300)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", ["killed", "full disk"])
def test_a_command_stopped_at_any_operation_ends_as_one_that_was_not(
    commands, whole, tmp_path, name, fault
):
    command = commands[name]
    expected, operations = whole(name)
    failed = {}
    for point in points(len(operations), f"{fault} {name}"):
        folder = tmp_path / f"at-{point}"
        (folder / "made").mkdir(parents=True)
        if fault == "killed":
            code, said = command.run(folder, dies_at=point)
            assert code == -signal.SIGKILL, (point, code, said)
        else:
            code, said = command.run(folder, full_from=point)
        try:
            if fault != "killed":
                require_one_line(code, said)
            command.again(folder, resume_first=point % 2 == 1)
            require_same(contents(folder / "made"), expected)
        except AssertionError as error:
            failed[operations[point - 1]] = str(error)
        else:
            shutil.rmtree(folder)
    assert not failed


def require_one_line(code, said):
    """The command failed in one line that names the disk, or could do without what it did not write."""
    lines = said.strip().splitlines()
    assert "Traceback" not in said, said
    assert code in (0, 2), (code, said)
    if code == 2:
        assert "No space left on device" in lines[-1], said
        assert ": error: " in lines[-1], said
        assert sum(": error: " in line for line in lines) == 1, said
