"""Bytes and texts of data files: unpacked on the way, and told from other encodings than UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from gptoss_ft.errors import DataError, Problem

_BYTE_ORDER_MARK = codecs.BOM_UTF8
# UTF-32 first: its mark begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_ZEROS: Mapping[tuple[int, ...], str] = MappingProxyType({(1, 3): "UTF-16LE", (0, 2): "UTF-16BE"})
# Files of other types, whatever their names say, and the ending that tells it.
_MAGIC = (
    (b"\x1f\x8b", ".gz"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"\xfd7zXZ\x00", ".xz"),
    (b"BZh91AY&SY", ".bz2"),
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"PK\x03\x04", ".xlsx"),
)
# Above this share of bytes beyond ASCII a text is not in a western encoding.
_FOREIGN = 0.3


class Opened(NamedTuple):
    """A file that is being read.

    Attributes:
        stream: its bytes, unpacked, without a byte order mark.
        position: says how many bytes of the file itself have been read.
    """

    stream: BinaryIO
    position: Callable[[], int]


def _zstd(raw: BinaryIO) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


_UNPACKERS: Mapping[str, Callable[[BinaryIO], Any]] = MappingProxyType(
    {
        ".gz": gzip.open,
        ".zst": _zstd,
        ".bz2": bz2.open,
        ".xz": lzma.open,
    }
)
COMPRESSIONS = tuple(_UNPACKERS)


@contextmanager
def opened(file: Path) -> Iterator[Opened]:
    """Opens a file, compressed or not.

    Raises:
        DataError: it cannot be opened or unpacked, or is in UTF-16 or UTF-32.
    """
    unpack = _UNPACKERS.get(file.suffix.lower())
    try:
        with file.open("rb") as raw:
            stream = unpack(raw) if unpack else raw
            _skip_mark(file, stream)
            yield Opened(stream, raw.tell)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"the file is not a whole {file.suffix} file" if unpack else "the file is unreadable"
        mend = "download or write it again" if unpack else "give yourself the right to read it"
        raise DataError(Problem(what, str(file), str(error), mend)) from error


def _skip_mark(file: Path, stream: Any) -> None:
    """Skips the byte order mark that some editors put first; refuses those of other encodings."""
    start = stream.peek(16)[:16]
    _refuse_misnamed(file, start)
    start = start[:4]
    if start.startswith(_BYTE_ORDER_MARK):
        stream.read(len(_BYTE_ORDER_MARK))
        return
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    # Without a mark: of what is written in ASCII, every second byte is 0.
    zeros = tuple(place for place, byte in enumerate(start) if byte == 0)
    marked = marked or _ZEROS.get(zeros, "")
    if marked:
        found = f"it begins with {start.hex(' ')}, as {marked} does"
        raise DataError(
            Problem("the file is not UTF-8", str(file), found, converting(file, marked))
        )


def _refuse_misnamed(file: Path, start: bytes) -> None:
    """Refuses a file that is of another type than its name says."""
    suffix = next((suffix for magic, suffix in _MAGIC if start.startswith(magic)), "")
    if not suffix:
        return
    packed = suffix in _UNPACKERS
    better = file.with_name(f"{file.name}{suffix}") if packed else file.with_suffix(suffix)
    mend = f"if it is: mv {shlex.quote(str(file))} {shlex.quote(str(better))}"
    found = f"it begins as a {suffix} file does"
    raise DataError(Problem("the file is not text", str(file), found, mend))


def read_all(file: Path) -> str:
    """Reads a text file as a whole.

    Raises:
        DataError: it is not UTF-8.
    """
    with opened(file) as source:
        content = source.stream.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(file, error, str(file))) from error


def not_utf8(
    file: Path, error: UnicodeDecodeError, where: str, what: str = "the file is not UTF-8"
) -> Problem:
    """Says which byte is not UTF-8, and which encoding is likely."""
    content = bytes(error.object)
    column = error.start - content.rfind(b"\n", 0, error.start)
    found = f"byte 0x{content[error.start]:02x} at column {column}"
    if b"\n" in content[:-1]:
        line = content.count(b"\n", 0, error.start) + 1
        found += f" of line {line}"
    return Problem(what, where, found, converting(file, _likely(content)))


def _likely(content: bytes) -> str:
    high = sum(byte > 127 for byte in content)
    foreign = high > _FOREIGN * len(content)
    for encoding in ("GB18030", "SHIFT_JIS", "WINDOWS-1252") if foreign else ("WINDOWS-1252",):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "ISO-8859-1"


def converting(file: Path, encoding: str) -> str:
    """Returns the command that converts a file to UTF-8, from what is likely its encoding."""
    name = shlex.quote(str(file))
    better = shlex.quote(str(file.with_name(f"{file.stem}.utf8{file.suffix}")))
    if file.suffix.lower() in _UNPACKERS:
        return f"unpack it, and save it as UTF-8; it may be {encoding}"
    return f"if it is {encoding}: iconv -f {encoding} -t UTF-8 {name} > {better}"
