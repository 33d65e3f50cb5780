"""Runs in processes of their own, forked from a server that has everything imported: quick to start, easy to kill."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import file_operations

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "comet.distill", "comet.adapt", "comet.finetune", "comet.evaluate", "comet.cache_teacher", "comet.trim",
        "comet.export", "sklearn.linear_model", "sklearn.model_selection", "sklearn.feature_extraction.text",
    ]
)  # fmt: skip


def start(
    arguments: Sequence[str], log: Path, program: str = "comet.distill", **environment: str
) -> BaseProcess:
    """Start a command line; what it prints goes to a file."""
    process = _SERVER.Process(target=_run, args=(program, list(arguments), str(log), environment))
    process.start()
    return process


def start_several(
    arguments: Sequence[str], log: Path, count: int, program: str = "comet.distill"
) -> list[BaseProcess]:
    """Start a command line as processes that work together, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": port}
    return [
        start(
            arguments,
            log.with_suffix(f".{rank}"),
            program,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            **several,
        )
        for rank in range(count)
    ]


def finish(processes: Sequence[BaseProcess], log: Path, timeout: float = 120) -> None:
    """Wait for processes to end well.

    Raises:
        AssertionError: one did not, with what it printed.
    """
    for process in processes:
        process.join(timeout)
    if any(process.exitcode != 0 for process in processes):
        for process in processes:
            process.kill()
        said = [path.read_text() for path in sorted(log.parent.glob(f"{log.stem}*"))]
        raise AssertionError("\n".join([str([one.exitcode for one in processes]), *said]))


def _run(program: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    import importlib

    import torch

    from comet.configuration import run_command

    os.environ.update(environment)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        sys.argv = [program, *arguments]
        if "WATCHED" in environment:
            file_operations.watch(**json.loads(environment["WATCHED"]))
        if "KILLED_AT_FSYNC" in environment:
            _die_at_fsync(int(environment["KILLED_AT_FSYNC"]))
        try:
            run_command(importlib.import_module(program).main, program)
        except Exception:
            traceback.print_exc()
            raise


def _die_at_fsync(number: int) -> None:
    """End this process, as `kill -9` would, in place of the n-th time a checkpoint's file or folder is made durable."""
    from comet import durable

    synchronise, calls = durable.synchronise, 0

    def counted(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        synchronise(path)

    durable.synchronise = counted
