import errno
import fcntl
import os

import pytest
from safetensors import SafetensorError

from comet.durable import (
    UnwritableError,
    checksums,
    discard_folder,
    file_aside,
    folder_aside,
    is_as_good_as_empty,
    locked,
    require_checksums,
    require_new_folder,
    sweep,
    write_text,
    writing,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave(folder):
    """What processes leave that were killed."""
    folder.mkdir(exist_ok=True)
    (folder / ".lock").touch()
    (folder / ".recipe.yaml.123.partial").write_text("teach")
    (folder / ".model.partial").mkdir()
    (folder / ".model.partial" / "config.json").write_text("{")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / ".step-2.7.partial").mkdir()
    return folder


def test_a_folder_with_nothing_but_remains_is_as_good_as_empty(tmp_path):
    folder = leave(tmp_path / "run")
    assert is_as_good_as_empty(folder)
    (folder / "checkpoints" / "note").touch()
    assert not is_as_good_as_empty(folder)
    (folder / "checkpoints" / "note").unlink()
    (folder / ".profile").touch()
    assert not is_as_good_as_empty(folder)
    assert not is_as_good_as_empty(folder / ".profile")
    assert not is_as_good_as_empty(tmp_path / "nowhere")


def test_remains_are_swept_but_not_what_is_being_written(tmp_path):
    folder = leave(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{}\n")
    writing_now = (folder / ".scores.json.99.partial").open("w")
    fcntl.flock(writing_now, fcntl.LOCK_EX)
    sweep(folder)
    assert names(folder) == [".lock", ".scores.json.99.partial", "checkpoints", "metrics.jsonl"]
    writing_now.close()
    sweep(folder, "other.json")
    assert ".scores.json.99.partial" in names(folder)
    sweep(folder, "scores.json")
    assert names(folder) == [".lock", "checkpoints", "metrics.jsonl"]


def test_a_folder_that_was_moved_away_to_be_replaced_comes_back(tmp_path):
    for name in ("both", ".both.old", ".one.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whose").write_text(name)
    sweep(tmp_path)
    assert names(tmp_path) == ["both", "one"]
    assert (tmp_path / "one" / "whose").read_text() == ".one.old"


def test_a_new_folder_replaces_remains_and_nothing_else(tmp_path):
    folder = leave(tmp_path / "new")
    with folder_aside(folder, new=True) as partial:
        (partial / "a").touch()
    assert names(tmp_path) == ["new"]
    assert names(folder) == ["a"]
    with pytest.raises(ValueError, match="new exists; name another folder"):
        require_new_folder(folder)
    with pytest.raises(ValueError, match=r"a is a file, so .*b cannot be made"):
        require_new_folder(folder / "a" / "b")


def test_of_two_that_write_the_same_new_folder_the_second_says_so(tmp_path):
    with folder_aside(tmp_path / "new", new=True) as first:
        (first / "mine").touch()
        with pytest.raises(ValueError, match=r"another process is writing .*new; name another"):
            require_new_folder(tmp_path / "new")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "theirs").touch()
        with pytest.raises(ValueError, match=r"another process has written .*new meanwhile"):
            raise_from_end(first, tmp_path / "new")
        (tmp_path / "new" / "theirs").unlink()
    assert names(tmp_path / "new") == ["mine"]


def raise_from_end(partial, final):
    from comet.durable import _add_folder

    _add_folder(partial, final)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "{}/file.json"),
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("system error: No space left on device"),
    ],
    ids=["python", "no name", "safetensors", "tokenizers", "words"],
)
def test_whatever_library_writes_a_full_disk_is_one_line(tmp_path, error):
    file = tmp_path / "file.json"
    write_text(file, "old")
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(tmp_path)
    said = r"^cannot write .*/file.json: No space left on device; make room"

    def half_written(partial):
        partial.write_text("half")
        raise error

    with pytest.raises(UnwritableError, match=said), file_aside(file) as partial:
        half_written(partial)
    assert names(tmp_path) == ["file.json"]
    assert file.read_text() == "old"


def test_the_advice_of_who_knows_more_is_given(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    said = r"cannot write .*/file: No space left on device; go home$"
    with (
        pytest.raises(UnwritableError, match=said),
        writing(tmp_path, "go home"),
        writing(tmp_path / "file"),
    ):
        full()


def test_what_is_written_aside_is_called_by_its_name(tmp_path):
    said = r"^cannot write .*/folder: No space left on device; make room"
    with pytest.raises(UnwritableError, match=said), folder_aside(tmp_path / "folder") as partial:
        write_into_full(partial / "config.json")


def write_into_full(file):
    with file_aside(file):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "model")),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model/config.json"),
        RuntimeError("shapes differ"),
        ValueError("--text: No space left on device"),
    ):
        with pytest.raises(type(error)) as caught, folder_aside(tmp_path / "new"):
            raise error
        assert caught.value is error
    assert names(tmp_path) == []


def test_a_folder_is_never_half_discarded_under_its_name(tmp_path, monkeypatch):
    (tmp_path / "step-1").mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard_folder(tmp_path / "step-1")
    monkeypatch.undo()
    assert names(tmp_path) == [f".step-1.{os.getpid()}.partial"]
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_checksums_name_what_differs(tmp_path):
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("{}")
    known = checksums(tmp_path)
    assert known.keys() == {"config.json"}
    (tmp_path / "README.md").write_text("my words")
    require_checksums(tmp_path, known)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"the checksum of config\.json differs"):
        require_checksums(tmp_path, known)


def test_a_lock_that_is_taken_is_said(tmp_path):
    with (
        locked(tmp_path / "a" / ".lock"),
        pytest.raises(ValueError, match="somebody works here"),
        locked(tmp_path / "a" / ".lock", "somebody works here"),
    ):
        pass
