"""MADLAD-400 (arXiv 2309.04662) on the hub: plain gzipped JSON lines, in a folder for each language.

`huggingface_hub` knows the file system; the dataset's loading script is not run.
"""

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from comet.corpus.connection import UnreachableError
from comet.corpus.lines import Shard, hashed
from comet.offline import unreachable

MADLAD_400 = "hf://datasets/allenai/MADLAD-400"
MADLAD_LANGUAGES = ("ha", "ig", "rw", "sw", "yo")


def madlad_shards(code: str, base: str) -> list[Shard]:
    """Find the clean shards of one language.

    Args:
        code: the language's folder, such as "ha".
        base: a folder or address that holds LANG/LANG_clean_*.jsonl.gz.

    Raises:
        ValueError: they are not there or cannot be reached.
    """
    pattern = f"{base}/{code}/{code}_clean_*.jsonl.gz"
    if base.startswith("hf://") and (why := unreachable()):
        raise UnreachableError(pattern, ConnectionError(why))
    # the libraries below raise errors of their own HTTP client, which changes between versions
    try:
        files, path = url_to_fs(pattern)
        found = files.glob(path, detail=True)
    except Exception as error:
        raise UnreachableError(pattern, error) from error
    if not found:
        raise ValueError(
            f"corpus: no shards at {pattern}; a language of MADLAD-400 is the name of a folder there, "
            f"such as {', '.join(MADLAD_LANGUAGES)}"
        )
    shards = [
        Shard(
            name if "://" not in base else files.unstrip_protocol(name),
            found[name]["size"],
            str(found[name].get("blob_id") or ""),
        )
        for name in sorted(found)
    ]
    return shards if "://" in base else hashed(shards)
