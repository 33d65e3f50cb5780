"""Text is UTF-8. Files in another encoding are told by their first bytes, and refused with what to do."""

import codecs

HEAD = 1 << 16  # bytes of a file that are looked at
_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_PACKED = {
    "gzip": b"\x1f\x8b", "zip": b"PK\x03\x04", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh91AY&SY",
}  # fmt: skip
_GUESS = "WINDOWS-1252"  # of what is not UTF-8 nor has a mark


def encoding_error(head: bytes, name: str) -> str | None:
    """What is wrong with a file that is no UTF-8 as a whole, and what to do; None where single lines are at most.

    Args:
        head: the beginning of its content, up to `HEAD` bytes.
        name: what it is called in the command that converts it.
    """
    marked = mark_error(head, name)
    if marked is not None:
        return marked
    lines = [line for line in head.splitlines(keepends=True) if line.strip()]
    if 2 * sum(b"\0" in line for line in lines) > len(lines):
        return (
            "holds NUL bytes, expected text in UTF-8; if it is text in UTF-16 without a mark: "
            f"{conversion(name, 'UTF-16LE')}"
        )
    bad = sum(not _is_utf8(line) for line in lines)
    if 2 * bad > len(lines):
        return f"is not in UTF-8: {bad:,} of its first {len(lines):,} lines cannot be read; {conversion(name)}"
    return None


def mark_error(head: bytes, name: str) -> str | None:
    """The same by the mark alone that text in UTF-16 or UTF-32, or what is compressed, begins with."""
    for encoding, marks in _MARKS.items():
        if head.startswith(marks):
            return f"is in {encoding}, expected UTF-8; {conversion(name, encoding)}"
    for kind, mark in _PACKED.items():
        if head.startswith(mark):
            return f"is compressed by {kind}, expected text in UTF-8; unpack it first"
    return None


def conversion(name: str = "FILE", encoding: str = _GUESS) -> str:
    """How a file is converted."""
    return f"convert it: iconv -f {encoding} -t UTF-8 {name} > NEW"


def _is_utf8(line: bytes) -> bool:
    """Whether bytes are text in UTF-8; of a line without its end the last character may be cut off."""
    try:
        codecs.utf_8_decode(line, "strict", line.endswith(b"\n"))
    except UnicodeDecodeError:
        return False
    return True
