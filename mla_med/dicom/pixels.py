"""One image's Header -> its stored values, straight from the file and outside Python's lock.

For what nearly every file is: uncompressed, or one frame of a lossless codec. `read_stored` returns
None for anything unusual or damaged, and pydicom decides then. Knows codecs; knows nothing of
geometry or Hounsfield units.
"""

from __future__ import annotations

from typing import BinaryIO

import imagecodecs
import numpy as np
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from mla_med.archive import open_file
from mla_med.dicom.header import Header
from mla_med.dicom.scan import EXPLICIT_LE, IMPLICIT_LE

_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_J2K_START = b"\xff\x4f\xff\x51"


def stored_type(header: Header) -> np.dtype:
    """int16 and the like, little endian, as the header promises."""
    return np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def read_stored(header: Header, scratch: np.ndarray | None = None) -> np.ndarray | None:
    """Stored values (rows, columns) of one frame, or of a whole mosaic; None if pydicom should read it.

    `scratch`: bytes to read uncompressed values into; the result may be a view of it.
    """
    at = header.pixels_at
    if at is None or header.samples != 1:
        return None
    with open_file(header.path) as file:
        if header.transfer_syntax_uid in (EXPLICIT_LE, IMPLICIT_LE):
            return _read_plain(file, at, header, scratch)
        if header.frames > 1:
            return None
        file.seek(at)
        return _decode(file.read(), header)


def _read_plain(file: BinaryIO, at: int, header: Header, scratch: np.ndarray | None) -> np.ndarray | None:
    dtype = stored_type(header)
    length = header.stored_rows * header.stored_columns * dtype.itemsize
    if scratch is None or scratch.nbytes < length:
        scratch = np.empty(length, np.uint8)
    frame = 0 if header.tiles else header.frame or 0
    file.seek(at + frame * length)
    if file.readinto(scratch[:length].data) != length:  # type: ignore[attr-defined]
        return None
    return scratch[:length].view(dtype).reshape(header.stored_rows, header.stored_columns)


def _decode(value: bytes, header: Header) -> np.ndarray | None:
    code = _fragments(value)
    decode = _DECODERS.get(header.transfer_syntax_uid)
    if code is None or decode is None:
        return None
    try:
        stored = decode(code, header)
    except (RuntimeError, ValueError):
        return None
    if stored is None or stored.size != header.stored_rows * header.stored_columns:
        return None
    return stored.reshape(header.stored_rows, header.stored_columns)


def _fragments(value: bytes) -> bytes | None:
    """The code stream of a single frame: all items after the offset table (PS3.5 A.4)."""
    parts: list[bytes] = []
    at = 0
    while value[at : at + 4] == _ITEM:
        length = int.from_bytes(value[at + 4 : at + 8], "little")
        parts.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    if value[at : at + 4] != _SEQUENCE_END or len(parts) < 2:
        return None
    return parts[1] if len(parts) == 2 else b"".join(parts[1:])


def _decode_jpegls(code: bytes, header: Header) -> np.ndarray | None:
    return _as_stated(imagecodecs.jpegls_decode(code), header)


def _decode_jpeg_lossless(code: bytes, header: Header) -> np.ndarray | None:
    return _as_stated(imagecodecs.jpegsof3_decode(code), header)


def _decode_jpeg2000(code: bytes, header: Header) -> np.ndarray | None:
    # SIZ marker, ISO/IEC 15444-1 A.5.1: depth and sign of the first component
    if code[:4] != _J2K_START or len(code) < 43:
        return None
    depth, signed = (code[42] & 0x7F) + 1, bool(code[42] & 0x80)
    if depth not in (header.bits_stored, header.bits_allocated) or signed != header.signed:
        return None
    return imagecodecs.jpeg2k_decode(code)


def _decode_rle(code: bytes, header: Header) -> np.ndarray | None:
    dtype = stored_type(header)
    out = bytearray(header.stored_rows * header.stored_columns * dtype.itemsize)
    decoded = imagecodecs.dicomrle_decode(code, dtype, out=out)
    return np.frombuffer(decoded, dtype)


def _as_stated(decoded: np.ndarray, header: Header) -> np.ndarray | None:
    """These codecs know no sign: a negative value of fewer bits than stored would come out positive."""
    dtype = stored_type(header)
    if decoded.dtype.itemsize != dtype.itemsize or (
        header.signed and header.bits_stored != header.bits_allocated
    ):
        return None
    return decoded.view(dtype)


_DECODERS = {
    JPEGLSLossless: _decode_jpegls,
    JPEGLossless: _decode_jpeg_lossless,
    JPEGLosslessSV1: _decode_jpeg_lossless,
    JPEG2000Lossless: _decode_jpeg2000,
    JPEG2000: _decode_jpeg2000,
    RLELossless: _decode_rle,
}
