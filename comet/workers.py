"""Pools made in the background: processes that read, tokenise and mask while the model trains.

Worker w of W makes the pools w, w + W, ...; they are taken in turn, so their number changes nothing but the speed. A
worker imports neither torch nor the program that started it, so it is there in a fraction of a second. It lives no
longer than the process that reads its pipe, and leaves Ctrl-C and SIGTERM to that one.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType

from comet.pools import Pool, PoolMaker, PoolPlace

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class _Failure:
    """Why a worker makes no more pools."""

    message: str


class BackgroundPools(Iterator[Pool]):
    """The pools of a stream from a place on, made by background processes.

    Args:
        maker: makes pools.
        place: of the first.
        workers: how many processes, above 0.
    """

    def __init__(self, maker: PoolMaker, place: PoolPlace, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._connections: list[Connection] = []
        self._next = place.number
        _running.add(self)
        for worker in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, maker, place, worker, workers), daemon=True
            )
            with _apart():
                process.start()
            theirs.close()  # so that a worker's death ends the pipe
            self._processes.append(process)
            self._connections.append(ours)

    def __next__(self) -> Pool:
        """The next pool.

        Raises:
            ValueError: a worker could not read the text, failed or died.
        """
        worker = self._next % len(self._processes)
        try:
            received: Pool | _Failure = self._connections[worker].recv()
        except (EOFError, OSError):
            self._processes[worker].join(5)
            raise ValueError(
                f"corpus: background worker {worker} died (exit code {self._processes[worker].exitcode}; -9 is "
                "what a lack of memory looks like); lower corpus.workers or corpus.shuffle_buffer"
            ) from None
        if isinstance(received, _Failure):
            raise ValueError(received.message)
        self._next += 1
        return received

    def close(self) -> None:
        """End the processes."""
        while self._connections:
            self._connections.pop().close()
        for process in self._processes:
            process.kill()
        while self._processes:
            self._processes.pop().join()

    def __del__(self) -> None:
        self.close()


_running: "weakref.WeakSet[BackgroundPools]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before multiprocessing waits for processes that ignore its SIGTERM."""
    for pools in list(_running):
        pools.close()


@contextmanager
def _apart() -> Iterator[None]:
    """Start processes that do not import this program's main module, and inherit that the signals are blocked.

    A signal that comes meanwhile is delivered to this process afterwards.
    """
    resource_tracker.ensure_running()  # it would unblock them when it is started
    program = sys.modules["__main__"]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _work(
    connection: Connection, maker: PoolMaker, place: PoolPlace, worker: int, workers: int
) -> None:
    """Make pools and send them, until nobody reads them any more."""
    # several workers stand for several threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        for pool in maker.pools(place, worker, workers):
            connection.send(pool)
    except BrokenPipeError:
        return
    except ValueError as error:
        failure = _Failure(str(error))
    except Exception as error:
        failure = _Failure(
            f"corpus: a background worker failed ({type(error).__name__}: {error}); corpus.workers 0 shows where"
        )
    connection.send(failure)
