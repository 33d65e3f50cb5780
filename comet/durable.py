"""Files and folders that are there whole or not at all, and stay when the machine goes down; and their checksums.

Everything is written aside, as `.NAME.PID.partial`, made durable and renamed. What a killed process leaves is
therefore told from what counts by its name alone, and from what another process is writing by a lock on it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
SEAL = "sha256"
_ADVICE = "make room or the folder writable, and start again"
_BLOCK = 1 << 24
_SAMPLE = 1 << 17  # bytes of a block of a file that is not read whole
_FEWEST = 4  # such blocks
_RECORD = "recipe.yaml"  # in the folder of every run
_RECORD_ABOVE = 3  # levels, from RUN/seed-0/hau/model
_SAVED = frozenset(  # what versions of Comet and transformers write next to weights
    {
        "README.md", "added_tokens.json", "chat_template.jinja", "comet.json", "config.json", "generation_config.json",
        "merges.txt", "model.safetensors", "model.safetensors.index.json", "sentencepiece.bpe.model",
        "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "vocab.json", "vocab.txt",
    }
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_UNWRITABLE = (
    *_FULL, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


class UnwritableError(OSError):
    """A file or folder could not be written.

    Args:
        path: which.
        reason: why, in the system's words.
        advice: what to do.
    """

    def __init__(self, path: Path, reason: str, advice: str) -> None:
        super().__init__(f"cannot write {path}: {reason}; {advice}")
        self.path, self.reason = path, reason


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sampled_checksum(path: Path, most: int) -> tuple[str, bool]:
    """SHA-256 of a file, or of a large one's size and blocks at fixed places, the first and the last among them.

    Args:
        path: of the file.
        most: bytes to read, about.

    Returns:
        The sum, and whether the file was read whole.
    """
    size, count = path.stat().st_size, max(_FEWEST, -(-most // _SAMPLE))
    if size <= count * _SAMPLE:
        return checksum(path), True
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(count):
            file.seek(number * (size - _SAMPLE) // (count - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest(), False


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with a checksum of it, for a file that others are made from."""
    return {**content, SEAL: _digest(content)}


def unsealed(content: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    """The content without its checksum.

    Args:
        content: as it was read.
        required: whether it must have one; earlier versions wrote none.

    Raises:
        ValueError: it is not what was written.
    """
    rest = {name: value for name, value in content.items() if name != SEAL}
    if (SEAL in content or required) and content.get(SEAL) != _digest(rest):
        raise ValueError("its checksum differs from what was written")
    return rest


def _digest(content: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # whose keys are text
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder by its path in it, but for README.md, which people edit."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"
    )
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def require_checksums(folder: Path, known: Mapping[str, str]) -> None:
    """Compare files of a folder with their checksums.

    Raises:
        ValueError: one is missing or is not what was written.
    """
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if checksum(path) != digest:
            raise ValueError(f"the checksum of {name} differs from what was written")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; several processes may do so at once.

    Raises:
        UnwritableError: it cannot be written; what was there stays.
    """
    with file_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file likewise, for people to read too."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it then replaces `path`, whole or not at all.

    Raises:
        UnwritableError: it cannot be written, by whichever library; what was there stays.
    """
    with writing(path), _aside(path) as partial:
        sweep(path.parent, path.name)
        partial.touch()
        with _held(partial):
            yield partial
            replace_file(partial, path)


@contextlib.contextmanager
def folder_aside(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into; it then replaces `path`, whole or not at all.

    Args:
        path: the folder; the one above is made.
        new: refuse to replace another; see `require_new_folder`.

    Raises:
        ValueError: another process has made the folder meanwhile, though it was to be new.
        UnwritableError: it cannot be written, by whichever library; what was there stays.
    """
    if new:
        require_new_folder(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        with _aside(path) as partial:
            partial.mkdir()
            with _held(partial):
                yield partial
                _add_folder(partial, path) if new else replace_folder(partial, path)


def require_new_folder(path: Path, flag: str = "--output") -> None:
    """Refuse a folder that cannot be made, or that holds something, before time is spent on what goes into it.

    Raises:
        ValueError: it is there and not empty, cannot be made, or another process is making it.
    """
    if path.is_symlink() or (path.exists() and not is_as_good_as_empty(path)):
        raise ValueError(f"{flag}: {path} exists; name another folder")
    if any(_is_held(partial) for partial in _remains(path.parent, path.name)):
        raise ValueError(f"{flag}: another process is writing {path}; name another folder")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise ValueError(f"{flag}: {above} is a file, so {path} cannot be made; name another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: {above} is not writable; name another folder")


def is_as_good_as_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a killed process leaves: unfinished files, locks, empty folders."""
    return folder.is_dir() and all(
        _is_leftover(one.name)
        or (one.is_dir() and not one.is_symlink() and is_as_good_as_empty(one))
        for one in folder.iterdir()
    )


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left directly in a folder of the file or folder called `name`, or of all.

    A folder that was to be replaced and is not there is put back. What another process is writing stays.
    """
    for remains in _remains(folder, name):
        if not _is_held(remains):
            _remove(remains)
    for old in _named(folder, name, r"\.old"):
        final = old.with_name(old.name[1:-4])
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)


@contextlib.contextmanager
def locked(path: Path, taken: str | None = None) -> Iterator[None]:
    """Hold a lock file, made with the folder it is in.

    Args:
        path: of the lock.
        taken: the message where another process holds it; None waits for that.

    Raises:
        ValueError: another process holds it.
        UnwritableError: it cannot be made.
    """
    lock = FileLock(path, timeout=-1 if taken is None else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(taken) from error
    except OSError as error:
        raise UnwritableError(path.parent, error.strerror or str(error), _ADVICE) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing(path: Path, advice: str | None = None) -> Iterator[None]:
    """Say in one line that something cannot be written, whichever library writes it.

    Args:
        path: what is being written.
        advice: what is to be done; goes over what the writing of a part of it would say.

    Raises:
        UnwritableError: the disk is full, the folder is not writable, or the like.
    """
    try:
        yield
    except UnwritableError as error:
        within = any(one.name.endswith(".partial") for one in error.path.parents)
        if advice is None and not within:
            raise
        named = path if within else error.path
        raise UnwritableError(named, error.reason, advice or _ADVICE) from error
    except Exception as error:
        found = system_error(error)
        if found is None or found.errno not in _UNWRITABLE or _is_elsewhere(found, path):
            raise
        raise UnwritableError(path, str(found.strerror), advice or _ADVICE) from error


def full_disk(error: BaseException) -> UnwritableError | None:
    """What is said of an error that nobody has explained, where the disk was full or cannot be written; else None."""
    if isinstance(error, UnwritableError):
        return error
    found = system_error(error)
    if found is None or found.errno not in _FULL:
        return None
    path = found.filename if isinstance(found.filename, (str, bytes)) else "to the disk"
    return UnwritableError(Path(os.fsdecode(path)), str(found.strerror), _ADVICE)


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind an exception; None where there is none.

    Libraries in Rust put its number into the text of exceptions of their own, others its words.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, ValueError):  # which is plain already
        return None
    text = str(error)
    found = _RUST_ERROR.search(text)
    if found:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    for number in _FULL:
        if os.strerror(number) in text:
            return OSError(number, os.strerror(number))
    return None if error.__cause__ is None else system_error(error.__cause__)


def discard_folder(folder: Path) -> None:
    """Remove a folder, of which no part is left under its name if this process is killed meanwhile."""
    with _aside(folder) as partial:
        folder.rename(partial)


def replace_file(partial: Path, final: Path) -> None:
    """Put a file that was written aside into its place."""
    synchronise(partial)
    os.replace(partial, final)
    synchronise(final.parent)


def replace_folder(partial: Path, final: Path) -> None:
    """Put a folder that was written aside into its place; what an earlier attempt of the same run left there goes.

    Raises:
        ValueError: something is there that no run wrote; it stays.
        OSError: the disk is full, or the folder cannot be written.
    """
    _require_own(final, {path.relative_to(partial).as_posix() for path in partial.rglob("*")})
    _synchronise_all(partial)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        final.rename(old)
    partial.rename(final)
    synchronise(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _require_own(folder: Path, names: Set[str]) -> None:
    """Refuse to replace a folder, unless a run wrote all that is in it.

    Args:
        folder: to be replaced.
        names: files and folders that are about to be written there, relative to it.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    advice = "move it elsewhere, or give another --output"
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"cannot replace {folder}: it is no folder that Comet wrote; {advice}")
    paths = (path for path in folder.rglob("*") if not _is_leftover(path.name))
    there = {path.relative_to(folder).as_posix() for path in paths}
    foreign = [
        name for name in sorted(there - names - _SAVED) if not fnmatch(name, "model-*.safetensors")
    ]
    if foreign:
        raise ValueError(
            f"cannot replace {folder}: it holds {foreign[0]}, which Comet did not write; {advice}"
        )
    above = folder.absolute().parents[:_RECORD_ABOVE]
    if there and not any((one / _RECORD).is_file() for one in above):
        raise ValueError(
            f"cannot replace {folder}: no run of Comet's is around it (no {_RECORD} above it); {advice}"
        )


def synchronise(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _add_folder(partial: Path, final: Path) -> None:
    """Put a folder that was written aside into its place, where nothing may be.

    Raises:
        ValueError: something is there.
    """
    _synchronise_all(partial)
    if is_as_good_as_empty(final):
        _remove(final)
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(
            f"--output: another process has written {final} meanwhile; name another folder"
        ) from error
    synchronise(final.parent)


def _synchronise_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        synchronise(path)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name for this process beside `path`; what is called so in the end is removed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


@contextlib.contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Hold a lock on what is being written, which ends with this process; nothing where the file system has none."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(partial: Path) -> bool:
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and name.endswith((".partial", LOCK))


def _remains(folder: Path, name: str) -> list[Path]:
    return _named(folder, name, r"(\.\d+)?\.partial")


def _named(folder: Path, name: str, ending: str) -> list[Path]:
    pattern = re.compile(r"\." + (".+" if name == "*" else re.escape(name)) + ending)
    found = folder.iterdir() if folder.is_dir() else ()
    return [one for one in found if pattern.fullmatch(one.name)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_elsewhere(error: OSError, path: Path) -> bool:
    """Whether an error names a file that has nothing to do with what is being written."""
    if error.filename is None or isinstance(error.filename, int):
        return False
    named, above = Path(os.fsdecode(error.filename)).absolute(), path.absolute().parent
    return above not in (named, *named.parents) and named not in above.parents
