"""Processes of one run that notice when another of them dies, and end with a line in place of waiting for it.

Every process keeps a connection to the main one. A process that ends says so with its exit code; the kernel closes the
connection of one that is killed, on a machine that is gone keep-alive probes do. The main process tells the others. So
it does not matter what a process is waiting for meanwhile, such as a collective operation that nobody will complete.
"""

import contextlib
import hmac
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_LOST, _ENDED = b"L", b"E"  # what the main process says, followed by an exit code and whose it is
_SECONDS_TO_CONNECT = 60
# for a process that hears that another one failed, and may be about to end by itself, by the exit code of the other
_SECONDS_TO_END = 30
_SECONDS_TO_STOP = {130: 300, 143: 300}  # what is tracked may still have to be sent
_TOKEN_BYTES, _RANK_BYTES = 32, 4


class Lifeline:
    """What connects this process with the others.

    Args:
        program: as the user typed it, for the line.
        rank: of this process.
        processes: how many there are.
        broadcast: gives every process the main one's value.

    Attributes:
        rank: of this process.
    """

    def __init__(
        self,
        program: str,
        rank: int,
        processes: int,
        broadcast: Callable[[tuple[int, bytes] | None], tuple[int, bytes]],
    ) -> None:
        self._program = program
        self.rank = rank
        self._processes = processes
        self._connections: dict[int, socket.socket] = {}  # by rank
        self._recorders: list[tuple[Path, Callable[[str], None]]] = []
        self._lock = threading.Lock()
        self._ended = False
        self._elsewhere = threading.Event()  # another process failed, and has said why
        if rank == 0:
            server = socket.create_server(("127.0.0.1" if _is_one_machine() else "", 0))
            token = secrets.token_bytes(_TOKEN_BYTES)
            broadcast((server.getsockname()[1], token))
            _in_background(self._watch_all, server, token)
        else:
            port, token = broadcast(None)
            host = "127.0.0.1" if _is_one_machine() else os.environ["MASTER_ADDR"]
            try:
                main = socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT)
                main.sendall(token + rank.to_bytes(_RANK_BYTES, "big"))
            except OSError as error:
                print(
                    f"{program}: warning: process {rank} cannot reach the main process at {host}:{port} ({error}): it "
                    "will not notice if another one dies",
                    file=sys.stderr,
                )
                return
            self._connections[0] = _kept_alive(main)
            _in_background(self._watch_main, main)

    @contextlib.contextmanager
    def recording(self, folder: Path, record: Callable[[str], None]) -> Iterator[None]:
        """Within this context a process that ends because of another one says how to resume a run, and records why.

        Args:
            folder: of the run.
            record: given the reason.
        """
        self._recorders.append((folder, record))
        try:
            yield
        finally:
            self._recorders.pop()

    def failed_elsewhere(self, seconds: float) -> bool:
        """Whether another process failed and has said why; waits so long for the news. Does not return if one died."""
        return self._elsewhere.wait(seconds)

    def end(self, code: int) -> None:
        """Tell the others that this process ends in order, with an exit code."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            said = bytes([code & 255])
            if self.rank == 0:
                said = _ENDED + said + bytes(_RANK_BYTES)
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.sendall(said)

    def _watch_all(self, server: socket.socket, token: bytes) -> None:
        """On the main process: accept the others, and listen until all have ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            left = self._processes - 1
            while left:
                for key, _ in selector.select():
                    if key.fileobj is server:
                        rank, connection = _accepted(server, token)
                        if connection is not None:
                            with self._lock:
                                self._connections[rank] = connection
                            selector.register(connection, selectors.EVENT_READ, rank)
                        continue
                    selector.unregister(key.fileobj)
                    left -= 1
                    self._heard(key.data, _received(self._connections[key.data], 1))
        server.close()

    def _heard(self, rank: int, said: bytes) -> None:
        if not said:
            self._lose(rank)
        elif said[0]:
            self._tell(_ENDED + bytes([said[0]]) + rank.to_bytes(_RANK_BYTES, "big"))
            self._fail(rank, said[0])

    def _watch_main(self, main: socket.socket) -> None:
        """On the other processes: listen until the main one ends."""
        said = _received(main, 2 + _RANK_BYTES)
        rank = int.from_bytes(said[2:], "big")
        if not said:
            self._lose(0)
        elif said[:1] == _LOST:
            self._lose(rank)
        elif said[1]:
            self._fail(rank, said[1])

    def _tell(self, said: bytes) -> None:
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.sendall(said)

    def _lose(self, rank: int) -> None:
        """End this process, as another one died; one process of those that notice says so."""
        if self._ended:
            return
        if self.rank == 0:
            self._tell(_LOST + bytes(1) + rank.to_bytes(_RANK_BYTES, "big"))
        reason = f"process {rank} of {self._processes} died (killed, or out of memory)"
        if self.rank == 0 or (rank == 0 and _speaks_without_main()):
            advice = "start the same command again"
            if self._recorders:
                folder = self._recorders[0][0]
                advice = f"resume with: python -m {self._program} --resume --output {folder}"
            print(f"{self._program}: error: {reason}; {advice}", file=sys.stderr, flush=True)
        self._leave(reason, 1)

    def _fail(self, rank: int, code: int) -> None:
        """End this process unless it ends by itself, as another one failed and has said why."""
        self._elsewhere.set()
        waiting = threading.Event()
        waiting.wait(_SECONDS_TO_STOP.get(code, _SECONDS_TO_END))
        if not self._ended:
            self._leave(
                f"process {rank} of {self._processes} ended with an error, which it printed", code
            )

    def _leave(self, reason: str, code: int) -> None:
        for _, record in reversed(self._recorders):
            with contextlib.suppress(OSError):
                record(reason)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)  # whatever the main thread waits for


def _accepted(server: socket.socket, token: bytes) -> tuple[int, socket.socket | None]:
    """The rank of the process that connects, and its connection; None for a stranger."""
    connection, _ = server.accept()
    connection.settimeout(_SECONDS_TO_CONNECT)
    said = _received(connection, _TOKEN_BYTES + _RANK_BYTES)
    if not hmac.compare_digest(said[:_TOKEN_BYTES], token):
        connection.close()
        return 0, None
    return int.from_bytes(said[_TOKEN_BYTES:], "big"), _kept_alive(connection)


def _received(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or none where the connection ends before."""
    found = b""
    with contextlib.suppress(OSError):
        while len(found) < count:
            more = connection.recv(count - len(found))
            if not more:
                return b""
            found += more
    return found if len(found) == count else b""


def _kept_alive(connection: socket.socket) -> socket.socket:
    """A connection that ends within 40 seconds when the other machine is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 15), ("TCP_KEEPALIVE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 5),
    ):  # fmt: skip
        if hasattr(socket, name):  # the first is Linux's, the second macOS's
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _is_one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]


def _speaks_without_main() -> bool:
    """Whether this process is the first that is left on its machine when the main one died."""
    rank, local = os.environ.get("RANK"), os.environ.get("LOCAL_RANK")
    return local == ("1" if rank == local else "0")


def _in_background(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True, name="lifeline").start()
