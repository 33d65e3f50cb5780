"""A model's folder to a repository of the Hugging Face hub, and in one line why not."""

import tempfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

import comet
from comet.cards.lineage import README, is_hub_id

_FLAG = "--push-to-hub"
_FILES = (
    "*.json", "*.jsonl", "*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data", "*.txt", "*.model", "*.jinja",
    "LICENSE*", "NOTICE*",
)  # fmt: skip
_NOT = (
    "checkpoints", "step-*", ".*", "optimizer*", "scheduler*", "trainer_state*", "rng_state*",
    "trim.json", "export.json",  # reports, which name folders of this machine
)  # fmt: skip
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


def require_pushable(repository: str) -> None:
    """Refuse what cannot be pushed to, before anything is read or sent.

    Raises:
        ValueError: the name is none of a repository, or there is no token.
    """
    if repository.count("/") != 1 or not is_hub_id(repository):
        raise ValueError(
            f"{_FLAG}: got {repository!r}, expected OWNER/NAME of letters, digits, '-', '_' and '.'"
        )
    if get_token() is None:
        raise ValueError(f"{_FLAG}: no token of the hub; {_LOG_IN}")


def pushed_files(folder: Path) -> list[Path]:
    """What of a model's folder goes to the hub, its card aside: no checkpoints, no states, no reports."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and any(fnmatch(path.name, pattern) for pattern in _FILES)
        and not any(
            fnmatch(part, pattern) for part in path.relative_to(folder).parts for pattern in _NOT
        )
    ]


def push(
    folder: Path,
    readme: str,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Send a model to the hub; nothing here is changed.

    Args:
        folder: the model's.
        readme: its card, as the hub shall have it.
        repository: OWNER/NAME; made if it is not there.
        private: others shall not see it.
        revision: the branch, made if it is not there; None for main.

    Returns:
        The repository's address.

    Raises:
        ValueError: it could not be sent; the message says what to do.
    """
    require_pushable(repository)
    api = HfApi(library_name="comet", library_version=comet.__version__)
    with tempfile.TemporaryDirectory() as staged:
        for path in pushed_files(folder):
            link = Path(staged) / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        (Path(staged) / README).write_text(readme, encoding="utf-8")
        try:
            address = api.create_repo(repository, private=private or None, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise ValueError(
                    f"{_FLAG}: {repository} is there already and public; give another name"
                )
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=staged,
                revision=revision,
                commit_message="A model and its card, by comet.card",
            )
        except Exception as error:  # of the hub, its HTTP client, and threads of uploads
            raise ValueError(_plainly(error, repository, api.endpoint)) from error
    return str(address)


def _plainly(error: BaseException, repository: str, endpoint: str) -> str:
    """What went wrong, and what to do."""
    if str(error).startswith(_FLAG):
        return str(error)
    chain, one = [error], error
    while one := (one.__cause__ or one.__context__):  # type: ignore[assignment]
        chain.append(one)
    if any(isinstance(found, OfflineModeIsEnabled) for found in chain):
        return f"{_FLAG}: HF_HUB_OFFLINE is set; take it away to reach the hub"
    responses = (getattr(found, "response", None) for found in chain)
    status = next((one.status_code for one in responses if one is not None), None)
    reason = " ".join(str(chain[-1] if status is None else error).split())
    owner = repository.split("/")[0]
    known = {
        401: f"{endpoint} does not take the token (401): {_LOG_IN}",
        403: f"the token may not write to {repository} (403): take one with write access to {owner}, and {_LOG_IN}",
        404: f"{endpoint} knows no {owner} that the token may write to (404): check the name, or {_LOG_IN}",
    }
    if status is None and not isinstance(error, ValueError):
        return (
            f"{_FLAG}: {endpoint} cannot be reached ({reason or type(chain[-1]).__name__}): check the connection "
            "(and HF_ENDPOINT), and run it again"
        )
    return f"{_FLAG}: {known.get(status or 0, f'{endpoint} refused {repository}: {reason}')}"
