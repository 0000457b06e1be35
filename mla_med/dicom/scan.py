"""A plain DICOM file -> the text of the elements that are asked for, without pydicom.

Ten times as fast, for the files that nearly every scanner and PACS writes: explicit or implicit VR
little endian, elements in order, characters that need no table. Whatever else a file holds makes
`scan` return None, and pydicom reads it. Where `scan` answers, it answers what pydicom would.
Encoding: DICOM PS3.5 sections 6.2 and 7.1, PS3.10 section 7.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import BinaryIO

EXPLICIT_LE = "1.2.840.10008.1.2.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
# Encapsulated syntaxes: their headers are explicit VR little endian (PS3.5 A.4).
_ENCAPSULATED = re.compile(r"1\.2\.840\.10008\.1\.2\.(4\.(5\d|6\d|70|80|81|90|91|92|93|20[123])|5)")

PIXEL_DATA = 0x7FE00010
CHARACTER_SET = 0x00080005
_TRANSFER_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(
    (*(b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"), *(b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
)
_SHORT_VRS = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"),
        *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
# Without a declared set only ASCII is allowed; where there is more, pydicom's side has to guess.
_ENCODINGS = {"": "ascii", "ISO_IR 6": "ascii", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}
_FORMS = {
    "DS": re.compile(r" *[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)? *"),
    "IS": re.compile(r" *[+-]?\d{1,9} *"),
    "UI": re.compile(r"[0-9.]{1,64}"),
}
_NUMBERS = {vr: struct.Struct(form) for vr, form in (("US", "<H"), ("SS", "<h"), ("FL", "<f"), ("FD", "<d"))}
_BOTH_SIGNS = {b"SS": "US"}
MAX_TEXT = 256
_CHUNK = 16 * 2**10
_MAX_VALUE_BYTES = 4096
_MAX_DEPTH = 16
_TAG = struct.Struct("<HH")
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHI")
_LENGTH = struct.Struct("<I")


class _Unusual(Exception):
    """Something that pydicom should read."""


class Elements:
    """The values of some elements, as text."""

    __slots__ = ("_texts", "pixel_tag_at", "transfer_syntax_uid")

    def __init__(self, texts: dict[int, tuple[str, ...]], transfer_syntax_uid: str, pixel_tag_at: int):
        self._texts = texts
        self.transfer_syntax_uid = transfer_syntax_uid
        self.pixel_tag_at = pixel_tag_at
        """Where in the file the pixel data element begins."""

    def __contains__(self, tag: int) -> bool:
        return tag in self._texts

    def select(self, tags: Sequence[int]) -> tuple[tuple[str, ...] | None, ...]:
        """The texts of these elements, None where there is no such element."""
        return tuple(map(self._texts.get, tags))

    def texts(self, tag: int) -> tuple[str, ...]:
        return self._texts.get(tag, ())


def scan(file: BinaryIO, vrs: Mapping[int, str]) -> Elements | None:
    """The elements `vrs` (tag -> VR) of a file with preamble, up to its pixel data; None if pydicom
    should read it. Never raises on what a file contains; OSError where it cannot be read."""
    window = _Window(file)
    try:
        syntax, start = _read_meta(window)
        raw, pixel_tag_at = _read_elements(window, start, vrs, explicit=syntax != IMPLICIT_LE)
        encoding = _ENCODINGS.get(raw.get(CHARACTER_SET, (b"", ""))[0].decode("latin-1").strip())
        if encoding is None:
            return None
        texts = {tag: _decode(value, vr, encoding) for tag, (value, vr) in raw.items()}
    except (_Unusual, struct.error, UnicodeDecodeError):
        return None
    return Elements(texts, syntax, pixel_tag_at)


class _Window:
    """What was read of a file last."""

    __slots__ = ("buffer", "file", "start")

    def __init__(self, file: BinaryIO):
        self.file = file
        file.seek(0)
        self.start, self.buffer = 0, file.read(_CHUNK)

    def move(self, position: int) -> None:
        self.file.seek(position)
        self.start, self.buffer = position, self.file.read(_CHUNK)


def _read_meta(window: _Window) -> tuple[str, int]:
    """-> the transfer syntax, and where the data set begins."""
    buffer = window.buffer
    if buffer[128:132] != b"DICM" or buffer[132:140] != b"\x02\0\0\0UL\x04\0":
        raise _Unusual
    end = 144 + _LENGTH.unpack_from(buffer, 140)[0]
    at, syntax = 144, b""
    while at < end:
        group, element, vr, length = _EXPLICIT.unpack_from(buffer, at)
        at += 8
        if vr in _LONG_VRS:
            length = _LENGTH.unpack_from(buffer, at)[0]
            at += 4
        elif vr not in _SHORT_VRS:
            raise _Unusual
        if group << 16 | element == _TRANSFER_SYNTAX:
            syntax = buffer[at : at + length]
        at += length
    uid = syntax.decode("ascii").rstrip("\0 ")
    if at != end or not (uid in (EXPLICIT_LE, IMPLICIT_LE) or _ENCAPSULATED.fullmatch(uid)):
        raise _Unusual
    return uid, end


def _read_elements(
    window: _Window, at: int, vrs: Mapping[int, str], explicit: bool
) -> tuple[dict[int, tuple[bytes, str]], int]:
    """-> raw values and their VR by tag, and the position of the pixel data."""
    found: dict[int, tuple[bytes, str]] = {}
    last = 0
    while True:
        place = at - window.start
        if place + 12 > len(window.buffer):
            window.move(at)
            place = 0
        tag, vr, length, header = _element(window.buffer, place, explicit)
        if tag <= last or tag >= PIXEL_DATA - 2:
            if tag == PIXEL_DATA and last < tag:
                return found, at
            raise _Unusual
        last = tag
        value = at + header
        if length == _UNDEFINED:
            if tag in vrs:
                raise _Unusual
            at = _skip_items(window, value, explicit and vr != b"UN", 0)
            continue
        if tag in vrs or tag == CHARACTER_SET:
            found[tag] = _value(window, value, length, vr, vrs.get(tag, "CS"))
        at = value + length


def _element(buffer: bytes, place: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """-> tag, VR, length of the value, length of what stands before the value."""
    if not explicit:
        group, element, length = _IMPLICIT.unpack_from(buffer, place)
        return group << 16 | element, b"", length, 8
    group, element, vr, length = _EXPLICIT.unpack_from(buffer, place)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, 8
    if vr not in _LONG_VRS:
        raise _Unusual
    return group << 16 | element, vr, _LENGTH.unpack_from(buffer, place + 8)[0], 12


def _value(window: _Window, at: int, length: int, vr: bytes, wanted: str) -> tuple[bytes, str]:
    stated = vr.decode("ascii") or wanted
    if wanted != _BOTH_SIGNS.get(vr, stated) or length > _MAX_VALUE_BYTES or wanted == "SQ":
        raise _Unusual
    place = at - window.start
    if place + length > len(window.buffer):
        window.move(at)
        place = 0
    value = window.buffer[place : place + length]
    if len(value) < length:
        raise _Unusual
    return value, stated


def _skip_items(window: _Window, at: int, explicit: bool, depth: int) -> int:
    """-> the position after a sequence of undefined length."""
    if depth > _MAX_DEPTH:
        raise _Unusual
    while True:
        tag, length = _item(window, at)
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _Unusual
        at = _skip_item(window, at, explicit, depth) if length == _UNDEFINED else at + length


def _skip_item(window: _Window, at: int, explicit: bool, depth: int) -> int:
    while True:
        tag, length = _item(window, at)
        if tag == _ITEM_END:
            return at + 8
        tag, vr, length, header = _element(window.buffer, at - window.start, explicit)
        at += header
        at = (
            _skip_items(window, at, explicit and vr != b"UN", depth + 1)
            if length == _UNDEFINED
            else at + length
        )


def _item(window: _Window, at: int) -> tuple[int, int]:
    place = at - window.start
    if place < 0 or place + 12 > len(window.buffer):
        window.move(at)
        place = 0
    group, element, length = _IMPLICIT.unpack_from(window.buffer, place)
    return group << 16 | element, length


@lru_cache(maxsize=4096)
def _decode(value: bytes, vr: str, encoding: str) -> tuple[str, ...]:
    """Clean, and as pydicom: values apart at the backslash; numbers only in a form that both read alike."""
    if vr in _NUMBERS:
        number = _NUMBERS[vr]
        if len(value) % number.size:
            raise _Unusual
        return tuple(str(n) for (n,) in number.iter_unpack(value))
    text = value.decode("ascii" if vr in _FORMS or vr == "CS" else encoding)
    parts = text.rstrip("\0 ").split("\\")
    form = _FORMS.get(vr)
    if form and not all(form.fullmatch(part) for part in parts if part):
        raise _Unusual
    return tuple(text for text in map(clean, parts) if text)


def clean(text: str) -> str:
    """One line of sane length: damaged headers hold binary where a word should be."""
    return printable(text[:MAX_TEXT])


def printable(text: str) -> str:
    """On one line. pydicom leaves the escape sequence of GB 2312 (PS3.3 C.12.1.1.2) in the text."""
    if not text.isprintable():
        text = text.replace("\x1b$)A", "").replace("\x1b(B", "")
        text = "".join(c if c.isprintable() else " " for c in text)
    return text.strip()
