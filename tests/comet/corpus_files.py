"""Files of documents for tests, and what a corpus gives of them."""

import gzip
import itertools
import json

OPTIONS = {"temperature": 1.0, "seed": 0, "held_out_per_language": 20}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(x if isinstance(x, bytes) else x.encode() + b"\n" for x in lines)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def records(texts):
    return [json.dumps({"text": text, "source": "a test"}) for text in texts]


def texts(name, count):
    return [f"{name} number {index}" for index in range(count)]


def take(stream, count):
    return list(itertools.islice(stream, count))


def write_two_languages(folder):
    """Two languages of 400 and 100 documents, in folders like MADLAD-400's."""
    write(folder / "ha/ha_clean_0000.jsonl.gz", records(texts("ha", 250)))
    write(folder / "ha/ha_clean_0001.jsonl.gz", records(texts("hb", 150)))
    write(folder / "yo/yo_clean_0000.jsonl.gz", records(texts("yo", 100)))
    return folder


def cut_off(path, share=0.5):
    """End a gzipped file before its end; what is left of it can be read up to some line."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
