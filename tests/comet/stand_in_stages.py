"""Stands in for the commands of an experiment's stages: writes in an instant what they would, or fails, or takes long.

Started as `python stand_in_stages.py comet.distill --recipe FILE --output DIR`. From $STAND_IN, as JSON:
`log`, a file that gets a line for each start; `fail`, parts of folders' names at which it fails; `slow`, likewise,
at which it takes `seconds`.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

ORDERS = json.loads(os.environ.get("STAND_IN", "{}"))
LANGUAGES = ("hau", "yor")


def main(program: str, arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    flags = dict(itertools.pairwise(arguments))
    folder = Path(flags.get("--output") or flags["--run"])
    resumed = "--resume" in arguments
    if program != "comet.evaluate":
        begin(folder, flags)
    with open(ORDERS["log"], "a") as log:  # from here on it may be killed
        log.write(f"{program} {'resumed ' if resumed else ''}{folder.parent.name}/{folder.name}\n")
    if any(part in str(folder) for part in ORDERS.get("slow", [])):
        print("step 1: slow", flush=True)
        time.sleep(ORDERS["seconds"])
    if any(part in f"{program} {folder}" for part in ORDERS.get("fail", [])):
        print("some lines\n\ncomet: error: it was to fail", flush=True)
        sys.exit(2)
    WORK[program](folder, flags)
    if program in ("comet.adapt", "comet.distill", "comet.finetune"):
        (folder / "run.json").write_text('{"state": "done"}')


def begin(folder: Path, flags: dict[str, str]) -> None:
    if "--recipe" not in flags:
        assert (folder / "recipe.yaml").is_file()
        return
    assert not (folder / "recipe.yaml").is_file()
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Path(flags["--recipe"]).read_text()
    if flags.get("--batches"):
        (folder / "index.json").write_text(json.dumps({"complete": False}))
    else:
        (folder / "recipe.yaml").write_text(recipe)
        (folder / "run.json").write_text('{"state": "running"}')


def train(folder: Path, flags: dict[str, str], tokens_per_second: int) -> None:
    """A run of 100 tokens a step."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    steps = recipe["optimisation"]["steps"]
    every = recipe.get("run", {}).get("log_every", 10)
    logged = [*range(every, steps, every), steps]
    lines = [
        {"step": step, "tokens": 100 * step, "tokens_per_second": tokens_per_second}
        for step in logged
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def cache(folder: Path, flags: dict[str, str]) -> None:
    """The teacher reads ten steps a second."""
    steps = int(flags["--batches"])
    index = {"complete": True, "seconds": steps / 10, "shards": [{"steps": steps}]}
    (folder / "index.json").write_text(json.dumps(index))


def finetune(folder: Path, flags: dict[str, str]) -> None:
    """One example in ten is wrong, more of a twin's."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    wrong = 10 if "distill" in recipe["model"]["model"] else 4
    for seed in recipe.get("run", {}).get("seeds", [0]):
        rows = [
            {"language": language, "row": row, "gold": row % 3,
             "predicted": (row + (row % wrong == seed)) % 3, "probabilities": None}
            for language in LANGUAGES
            for row in range(60)
        ]  # fmt: skip
        file = folder / "predictions" / "dev" / f"seed-{seed}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(folder: Path, flags: dict[str, str]) -> None:
    seeds = [int(file.stem[5:]) for file in sorted((folder / "predictions/dev").iterdir())]
    figure = {"mean": 0.7, "std": None, "low": 0.65, "high": 0.75, "values": [0.7] * len(seeds)}
    task = {"name": "afrisenti", "kind": "sequence", "labels": ["a", "b", "c"]}
    scores = {
        "schema": 1, "system": folder.parent.name, "split": "dev", "measure": "weighted_f1", "task": task,
        "seeds": seeds, "size": {"parameters": 1_234_567}, "mean": {"weighted_f1": figure},
        "languages": {one: {"trained": True, "weighted_f1": figure} for one in LANGUAGES},
        "retention": {"raw": {"mean": 0.98}} if "--teacher" in flags else None,
    }  # fmt: skip
    (folder / "scores-dev.json").write_text(json.dumps(scores))


WORK = {
    "comet.adapt": lambda folder, flags: train(folder, flags, 4000),
    "comet.distill": lambda folder, flags: train(folder, flags, 1000),
    "comet.cache_teacher": cache,
    "comet.finetune": finetune,
    "comet.evaluate": evaluate,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
