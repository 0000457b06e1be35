"""Path -> its bytes, also where the path leads through a ZIP archive or ends in a gzip file.

`study.zip/series 1/IM0001` names a member of `study.zip`. Nothing is unpacked to disk, so that no
name in an archive can lead out of it and no patient's file is left behind. Knows nothing of DICOM.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

MAX_MEMBER_BYTES = 4 * 2**30
"""What one packed file may grow to."""
HARMLESS_BYTES = 64 * 2**20
"""Up to this size a packed file may be as compressible as it likes."""
MAX_RATIO = 200
"""Real images shrink two to ten times; a bomb shrinks a thousand times."""
MAX_GZIP_RATIO = 50
MAX_MEMBERS = 200_000

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
GZIP_MAGIC = b"\x1f\x8b\x08"
_CHUNK = 2**20
_BUFFER = 2**14
"""Holds the header of most images: one call of the system reads it."""


class ArchiveError(OSError):
    """A packed file that must not or cannot be unpacked; `strerror` says why."""

    def __init__(self, words: str):
        super().__init__(None, words)


# bz2 raises OSError, lzma an error of its own
_UNPACKABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError),
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive. `problem` says why it must not be read, empty if it may."""

    path: Path
    problem: str = ""


def open_file(path: Path) -> BinaryIO:
    """The bytes of a regular file, unpacked. Never waits on a FIFO, never follows a link.

    OSError where it cannot be read; ArchiveError, a kind of it, where it must not be unpacked.
    """
    try:
        file: BinaryIO = _open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        file = io.BytesIO(_read_member(path))
    head = file.read(132)
    file.seek(0)
    if head.startswith(GZIP_MAGIC) and head[128:] != b"DICM":
        with file:
            return io.BytesIO(_gunzip(file))
    return file


def size_of(file: BinaryIO) -> int:
    """In bytes; leaves the file where it stands, or, in memory, at its end."""
    return file.seek(0, io.SEEK_END) if isinstance(file, io.BytesIO) else os.fstat(file.fileno()).st_size


def stamp(path: Path) -> tuple[int, int]:
    """(time of last change in ns, size or checksum): equal as long as the file does not change."""
    try:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    except (FileNotFoundError, NotADirectoryError):
        archive, info = _find_member(path)
        return archive.stat().st_mtime_ns, info.CRC << 32 | info.file_size


def is_file(path: Path) -> bool:
    """Is there a file, on disk or in an archive?"""
    try:
        stamp(path)
    except OSError:
        return False
    return True


def is_zip(path: Path) -> bool:
    """By its first bytes: names lie. A DICOM file whose preamble looks like a ZIP is DICOM."""
    with _open_regular(path) as file:
        head = file.read(132)
    return head.startswith(ZIP_MAGIC) and head[128:] != b"DICM"


def members(path: Path) -> list[Member]:
    """The files in a ZIP archive, by name. ArchiveError if it is damaged or hostile as a whole."""
    infos = [info for info in _zip(path).infolist() if not info.is_dir()]
    if len(infos) > MAX_MEMBERS:
        raise ArchiveError(f"holds {len(infos)} files, more than the {MAX_MEMBERS} that are read")
    if _is_bomb(path.stat().st_size, sum(info.file_size for info in infos)):
        raise ArchiveError("unpacks to many times its size, as no study does")
    times = Counter(_safe_name(info) for info in infos)
    found = [
        Member(path / name, "has a name twice" if times[name] > 1 else _problem(info))
        for info in infos
        for name in (_safe_name(info),)
    ]
    return sorted(found, key=lambda member: member.path)


def _open_regular(path: Path) -> BinaryIO:
    # O_NONBLOCK: opening a FIFO without a writer would wait for ever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArchiveError("is not a regular file")
    return os.fdopen(descriptor, "rb", _BUFFER)


def _read_member(path: Path) -> bytes:
    archive, info = _find_member(path)
    if problem := _problem(info):
        raise ArchiveError(problem)
    try:
        with _zip(archive).open(info) as file:
            return _read_at_most(file, info.file_size)
    except _UNPACKABLE as error:
        raise ArchiveError("is damaged in its archive") from error


def _find_member(path: Path) -> tuple[Path, zipfile.ZipInfo]:
    for archive in path.parents:
        if archive.is_file():
            wanted = path.relative_to(archive).as_posix()
            info = _infos(archive).get(wanted)
            if info is None:
                break
            return archive, info
    raise FileNotFoundError(2, "No such file", str(path))


def _infos(archive: Path) -> dict[str, zipfile.ZipInfo]:
    status = archive.stat()
    return _read_directory(archive, status.st_mtime_ns, status.st_size)[1]


def _zip(archive: Path) -> zipfile.ZipFile:
    status = archive.stat()
    return _read_directory(archive, status.st_mtime_ns, status.st_size)[0]


@lru_cache(maxsize=8)
def _read_directory(
    archive: Path, _mtime_ns: int, _size: int
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    try:
        # not closed here: the members are read through it, and it closes with the last reference
        file = zipfile.ZipFile(_open_regular(archive))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        ValueError,
        OverflowError,
    ) as error:
        raise ArchiveError("is no readable ZIP archive") from error
    return file, {_safe_name(info).as_posix(): info for info in file.infolist()}


def _safe_name(info: zipfile.ZipInfo) -> Path:
    """Below the archive whatever the name says: only a key, nothing is ever written by it."""
    parts = [p for p in info.filename.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    return Path(*parts) if parts else Path("unnamed")


def _problem(info: zipfile.ZipInfo) -> str:
    parts = info.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        return "has a name that leads out of its archive"
    if info.flag_bits & 1:
        return "is encrypted; unpack it with its password"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link in its archive"
    if info.file_size > MAX_MEMBER_BYTES or _is_bomb(info.compress_size, info.file_size):
        return f"unpacks from {info.compress_size} to {info.file_size} bytes, as no image does"
    return ""


def _is_bomb(packed: int, unpacked: int) -> bool:
    return unpacked > HARMLESS_BYTES and unpacked > MAX_RATIO * max(1, packed)


def _gunzip(file: BinaryIO) -> bytes:
    packed = file.seek(0, io.SEEK_END)
    file.seek(0)
    # A gzip file does not say how large it is before it is unpacked, or lies.
    most = max(HARMLESS_BYTES, min(MAX_MEMBER_BYTES, MAX_GZIP_RATIO * packed))
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            content = _read_at_most(unpacked, most)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError("is a damaged gzip file") from error
    if len(content) > most:
        raise ArchiveError(f"unpacks from {packed} to more than {most} bytes, as no image does")
    return content


def _read_at_most(file, most: int) -> bytes:
    """One byte more than allowed at most: a header may lie about the size."""
    content = io.BytesIO()
    while content.tell() <= most and (chunk := file.read(min(_CHUNK, most + 1 - content.tell()))):
        content.write(chunk)
    return content.getvalue()
