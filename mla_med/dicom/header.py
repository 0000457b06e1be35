"""DICOM file -> Headers: what one image says of its geometry and acquisition, one per frame.

Reads a file once and keeps what it found until the file changes. Knows pydicom, classic and
enhanced objects, and files that lie; knows nothing of series, volumes or people.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from mla_med.archive import ZIP_MAGIC, open_file, size_of, stamp
from mla_med.dicom.mosaic import slice_positions, tile_side
from mla_med.dicom.quiet import quiet_pydicom as quiet_pydicom
from mla_med.dicom.scan import EXPLICIT_LE, IMPLICIT_LE, Elements, clean, printable, scan

# What pydicom raises on files that are damaged or hostile; found by fuzzing, none of it documented.
MALFORMED = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)
MAX_INFLATED_BYTES = 256 * 2**20
MAX_INFLATED_RATIO, HARMLESS_BYTES = 50, 16 * 2**20
"""A deflated file may not grow beyond these: 1 MB can inflate to 1 GB, and an archive can hold many."""

UID_FORM = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,63}")
IMAGE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4")
)
_IMAGE_TYPE, _SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080008, 0x00080016, 0x00080018
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 93, 203, 112))
READABLE_HERE = frozenset(
    (EXPLICIT_LE, *(f"1.2.840.10008.1.2.{n}" for n in ("4.57", "4.70", "4.80", "4.90", "4.91", "5")))
)
_PIXEL_TAG, _PIXEL_VRS = b"\xe0\x7f\x10\0", (b"OW\0\0", b"OB\0\0")
_DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"

_SIEMENS_B_VALUE = 0x0019100C
_GE_B_VALUE = 0x00431039
_PHILIPS_B_VALUE = 0x20011003
_UIH_B_VALUE, _UIH_TILES = 0x00651009, 0x00651050
_TAGS: list[Any] = [
    *(
        "SpecificCharacterSet",
        "SOPInstanceUID",
        "SOPClassUID",
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "Modality",
    ),
    *("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("SeriesNumber", "SeriesDescription", "BodyPartExamined"),
    *("ImageType", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *(
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "ImageOrientationPatient",
        "ImagePositionPatient",
    ),
    *("PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("ModalityLUTSequence", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "ConvolutionKernel", "EchoTime", "EchoNumbers", "DiffusionBValue"),
    *("DiffusionGradientOrientation", "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime"),
    *("AcquisitionTime", "ContentTime", "InstanceNumber", "SpacingBetweenSlices"),
    *("NominalPercentageOfCardiacPhase", "KVP", "FrameOfReferenceUID", "LossyImageCompression"),
    *("RepetitionTime", "InversionTime", "FlipAngle", "ScanningSequence", "SequenceVariant"),
    *("SequenceName", "PulseSequenceName", "MRAcquisitionType", "ProtocolName", "ContrastBolusAgent"),
    *("ContrastBolusAgentSequence", "Manufacturer", "ManufacturerModelName"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(0x00190010, _SIEMENS_B_VALUE, 0x00430010, _GE_B_VALUE, 0x20010010, _PHILIPS_B_VALUE),
    *(_UIH_B_VALUE, _UIH_TILES),
]
_PRIVATE_VRS = {
    **{_SIEMENS_B_VALUE: "IS", _GE_B_VALUE: "IS", _PHILIPS_B_VALUE: "FL"},
    **{_UIH_B_VALUE: "FD", _UIH_TILES: "DS"},
    **{0x00190010: "LO", 0x00430010: "LO", 0x20010010: "LO"},
}
_TAG_OF = {key: tag_for_keyword(key) if isinstance(key, str) else key for key in _TAGS}
# US or SS: pydicom asks PixelRepresentation; so does `_padding`, which then reads either the same.
_VRS = {
    tag: _PRIVATE_VRS.get(tag) or dictionary_VR(tag).replace("US or SS", "US")
    for tag in map(int, filter(None, _TAG_OF.values()))
}
_OF_IMAGE = (
    *("SOPInstanceUID", "SOPClassUID", "AcquisitionTime", "ContentTime", "InstanceNumber"),
    "ImagePositionPatient",
)
_OF_SERIES = tuple(tag for key, tag in _TAG_OF.items() if key not in _OF_IMAGE)
"""Elements that are nearly always the same in all files of a series."""


class NotDicomError(Exception):
    """The file is something else; the message says what was seen."""


class ZipFoundError(NotDicomError):
    """The file is a ZIP archive."""


class PixelsMissingError(EOFError):
    """An image whose file is over before its pixel data begin."""

    def __init__(self, study_uid: str):
        super().__init__("no pixel data")
        self.study_uid = study_uid


@dataclass(frozen=True, slots=True)
class Header:
    """One image. None where the file does not say, or says nonsense."""

    path: Path
    frame: int | None
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    patient_hash: int | None
    """To tell patients apart without keeping who they are; changes with every process."""
    person_hash: int | None
    """The same of birth date and sex; None unless both are stated."""
    series_number: int
    modality: str
    description: str
    body_part: str
    image_type: tuple[str, ...]
    transfer_syntax_uid: str
    lossy: bool
    rows: int
    columns: int
    samples: int
    photometric: str
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    orientation: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    """Patient coordinates as DICOM has them: left, posterior, superior."""
    row_column_spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    """The unit that rescaling gives (PS3.3 C.11.1.1.2); empty where it is not stated."""
    has_lut: bool
    """Stored values go through a table (ModalityLUTSequence), not through slope and intercept."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value that means: nothing was measured here."""
    kernel: str
    echo: tuple[float | None, str]
    b_value: float | None
    gradient: tuple[float, ...] | None
    temporal_position: int | None
    acquisition_number: int | None
    trigger_ms: float | None
    cardiac_phase: float | None
    kvp: float | None
    repetition_ms: float | None
    inversion_ms: float | None
    flip_deg: float | None
    scanning_sequence: tuple[str, ...]
    """MR: SE, IR, GR, EP, RM (ScanningSequence), with the words of SequenceVariant behind them."""
    sequence_name: str
    acquisition_type: str
    """MR: 2D or 3D."""
    protocol: str
    contrast: str | None
    """The contrast agent as named; empty where the attribute has no value, None where it is not there."""
    manufacturer: str
    model: str
    frame_of_reference_uid: str
    acquisition_time: str
    content_time: str
    instance_number: int | None
    pixels_complete: bool
    """False: the file ends before its pixel data do."""
    pixels_in_excess: bool = False
    """True: the file holds twice the pixels that its header describes, or more."""
    tiles: int = 0
    """Siemens mosaic: how many slices lie side by side in the stored image; 0 elsewhere."""
    pixels_at: int | None = field(default=None, compare=False)
    """Where in the file the value of the pixel data begins; None where pydicom has to find it."""

    @property
    def file_name(self) -> str:
        """For messages: on one line whatever the file is called."""
        return printable(self.path.name.encode("utf-8", "backslashreplace").decode())

    @property
    def stored_rows(self) -> int:
        """Rows of the stored image, of which a slice of a mosaic is a part."""
        return self.rows * self.tile_side

    @property
    def stored_columns(self) -> int:
        return self.columns * self.tile_side

    @property
    def tile_side(self) -> int:
        """Tiles along an edge of a mosaic; 1 elsewhere."""
        return tile_side(self.tiles)


def read_headers(path: Path) -> tuple[Header, ...]:
    """One header, or one per frame of an enhanced object. Raises NotDicomError, one of MALFORMED,
    or OSError."""
    return _read_headers(path, stamp(path))


def pixel_digest(path: Path) -> bytes:
    """Of everything from the pixel data on, to tell images of one header apart."""
    with open_file(path) as file:
        elements = scan(file, _VRS)
        if elements is None:
            file.seek(0)
            pydicom.dcmread(file, stop_before_pixels=True, force=True)
        else:
            file.seek(elements.pixel_tag_at)
        return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


_NO_META = Dataset()


@lru_cache(maxsize=65536)
def _read_headers(path: Path, _stamp: tuple[int, int]) -> tuple[Header, ...]:
    with open_file(path) as file:
        elements = scan(file, _VRS)
        size = size_of(file)
        if elements is not None and _is_plain(elements):
            file.seek(elements.pixel_tag_at)
            return tuple(_headers(path, elements, _NO_META, elements.transfer_syntax_uid, file, size))
        return _read_slowly(path, file, size)


def _read_slowly(path: Path, file: BinaryIO, size: int) -> tuple[Header, ...]:
    """What is not plain, with pydicom."""
    file.seek(0)
    with quiet_pydicom():
        bare = _is_bare(file)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=bare)
        guess_characters(dataset)
        meta = getattr(dataset, "file_meta", Dataset())
        syntax = _uid(_text(meta, "TransferSyntaxUID")) or str(ImplicitVRLittleEndian)
        return tuple(_headers(path, dataset, meta, syntax, file, size))


def _is_plain(elements: Elements) -> bool:
    identified = elements.texts(_SOP_INSTANCE_UID) and elements.texts(_SOP_CLASS_UID)
    tiled = "MOSAIC" in elements.texts(_IMAGE_TYPE) or _UIH_TILES in elements
    return bool(identified) and not tiled


def _headers(
    path: Path, dataset: Dataset | Elements, meta: Dataset, syntax: str, file: BinaryIO, size: int
) -> Iterator[Header]:
    """`file` stands at the element of the pixel data, or where the file ended before it."""
    common = _common(path, dataset, meta, _true_syntax(file, syntax))
    if _lacks_pixels(file, size, common):
        raise PixelsMissingError(common["study_uid"])
    if common["sop_class_uid"] == DICOMDIR_CLASS:
        return
    common["pixels_at"] = _pixels_at(file, common["transfer_syntax_uid"], _promised_bytes(common))
    common["pixels_complete"] = _has_all_pixels(file, size, common)
    common["pixels_in_excess"] = _has_excess(file, common)
    if isinstance(dataset, Dataset) and _is_tiled(dataset):
        yield from _tiles(dataset, common, file)
    else:
        yield from _frames(dataset, common)


def guess_characters(dataset: Dataset) -> None:
    """Text in more than ASCII without a SpecificCharacterSet breaks the standard (PS3.3 C.12.1.1.2), and
    many scanners write it: it is UTF-8 if it can be, else GB18030 if it can be, else Latin 1."""
    if dataset.get("SpecificCharacterSet") not in (None, "", "ISO_IR 6"):
        return
    raw = b"".join(_raw_texts(dataset))
    if raw.isascii():
        return
    for codec in ("utf-8", "gb18030", "latin-1"):
        try:
            raw.decode(codec)
        except UnicodeDecodeError:
            continue
        dataset.set_original_encoding(None, None, [codec])
        return


def _raw_texts(dataset: Dataset) -> Iterator[bytes]:
    """Values as they were read, before anything decodes them."""
    for element in dataset.values():
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            vr = element.VR or (dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN")
            if vr in ("LO", "LT", "PN", "SH", "ST", "UC", "UT"):
                yield element.value + b"\n"


def _is_bare(file: BinaryIO) -> bool:
    """True for a data set without preamble, as some scanners export; leaves the file at its start."""
    head = file.read(2048)
    file.seek(0)
    if head[128:132] == b"DICM":
        if DeflatedExplicitVRLittleEndian.encode() in head:
            _check_inflated_size(file)
        return False
    if not head:
        raise NotDicomError("is empty")
    # Group 0008, an element up to 0018, as every image starts; big endian never came without preamble.
    if len(head) > 132 and head[:2] == b"\x08\x00" and head[3] == 0 and head[2] <= 0x18:
        return True
    if head.startswith(ZIP_MAGIC):
        raise ZipFoundError("is a ZIP archive")
    raise NotDicomError("is not a DICOM file")


def _check_inflated_size(file: BinaryIO) -> None:
    pydicom.filereader.read_preamble(file, force=False)
    meta = pydicom.filereader._read_file_meta_info(file)
    start = file.tell()
    if _text(meta, "TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return
    size = file.seek(0, os.SEEK_END)
    most = min(MAX_INFLATED_BYTES, max(HARMLESS_BYTES, MAX_INFLATED_RATIO * size))
    file.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    # past its end it would hoard whatever follows
    while not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(2**16)):
        size += len(inflater.decompress(chunk, 2**20))
        if size > most:
            raise ValueError(f"inflates to more than {most} bytes")
    file.seek(0)


def _common(path: Path, dataset: Dataset | Elements, meta: Dataset, syntax: str) -> dict[str, Any]:
    """What all frames of a file share."""
    return {
        **_alike(_shared, dataset, syntax),
        "path": path,
        "sop_instance_uid": _uid(_text(dataset, "SOPInstanceUID"), _text(meta, "MediaStorageSOPInstanceUID")),
        "sop_class_uid": _uid(_text(dataset, "SOPClassUID"), _text(meta, "MediaStorageSOPClassUID")),
        "acquisition_time": _text(dataset, "AcquisitionTime"),
        "content_time": _text(dataset, "ContentTime"),
        "instance_number": _whole(dataset, "InstanceNumber"),
    }


_Reader = Callable[[Dataset | Elements, str], dict[str, Any]]


def _alike(read: _Reader, dataset: Dataset | Elements, syntax: str) -> dict[str, Any]:
    """What `read` makes of a file; once for all files of a series whose text is equal."""
    if isinstance(dataset, Elements):
        return _of_equal_text(read, dataset.select(_OF_SERIES), syntax)
    return read(dataset, syntax)


@lru_cache(maxsize=256)
def _of_equal_text(read: _Reader, texts: tuple[tuple[str, ...] | None, ...], syntax: str) -> dict[str, Any]:
    known = {tag: text for tag, text in zip(_OF_SERIES, texts, strict=True) if text is not None}
    return read(Elements(known, syntax, 0), syntax)


def _shared(dataset: Dataset | Elements, syntax: str) -> dict[str, Any]:
    patient = (_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID"))
    person = (_text(dataset, "PatientBirthDate"), _text(dataset, "PatientSex").upper())
    signed = _whole(dataset, "PixelRepresentation") == 1
    return {
        "series_uid": _uid(_text(dataset, "SeriesInstanceUID")),
        "study_uid": _uid(_text(dataset, "StudyInstanceUID")),
        "patient_hash": hash(patient) if patient[0] else None,
        "person_hash": hash(person) if all(person) else None,
        "series_number": _whole(dataset, "SeriesNumber") or 0,
        "modality": _text(dataset, "Modality").upper(),
        "description": _text(dataset, "SeriesDescription"),
        "body_part": _text(dataset, "BodyPartExamined").upper(),
        "transfer_syntax_uid": syntax,
        "lossy": _text(dataset, "LossyImageCompression") == "01" or syntax in LOSSY_SYNTAXES,
        "rows": _whole(dataset, "Rows") or 0,
        "columns": _whole(dataset, "Columns") or 0,
        "samples": _whole(dataset, "SamplesPerPixel") or 1,
        "photometric": _text(dataset, "PhotometricInterpretation").upper(),
        "frames": max(1, _whole(dataset, "NumberOfFrames") or 1),
        "bits_allocated": _whole(dataset, "BitsAllocated") or 0,
        "bits_stored": _whole(dataset, "BitsStored") or 0,
        "high_bit": _whole(dataset, "HighBit") or 0,
        "signed": signed,
        "padding": _padding(dataset, signed),
        "kernel": "/".join(_texts(dataset, "ConvolutionKernel")),
        "acquisition_number": _whole(dataset, "AcquisitionNumber"),
        "kvp": _number(dataset, "KVP"),
        "scanning_sequence": (*_texts(dataset, "ScanningSequence"), *_texts(dataset, "SequenceVariant")),
        "sequence_name": _text(dataset, "SequenceName") or _text(dataset, "PulseSequenceName"),
        "acquisition_type": _text(dataset, "MRAcquisitionType").upper(),
        "protocol": _text(dataset, "ProtocolName"),
        "contrast": _contrast(dataset),
        "manufacturer": _text(dataset, "Manufacturer"),
        "model": _text(dataset, "ManufacturerModelName"),
        "frame_of_reference_uid": _uid(_text(dataset, "FrameOfReferenceUID")),
    }


def _contrast(dataset: Dataset | Elements) -> str | None:
    """The agent by name."""
    items = _items(dataset, "ContrastBolusAgentSequence")
    named = [_text(item, "CodeMeaning") or _text(item, "CodeValue") for item in items]
    if _TAG_OF["ContrastBolusAgent"] in dataset:
        named.append(_text(dataset, "ContrastBolusAgent"))
    return "/".join(name for name in named if name) if named else None


def _padding(dataset: Dataset | Elements, signed: bool) -> tuple[int, int] | None:
    first = _whole(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _whole(dataset, "PixelPaddingRangeLimit")
    ends = sorted((first, first if last is None else last))
    if signed:
        # Some writers store a negative padding value under VR US.
        ends = sorted(end - 2**16 if end >= 2**15 else end for end in ends)
    return ends[0], ends[1]


def _lacks_pixels(file: BinaryIO, size: int, common: dict[str, Any]) -> bool:
    """An image whose file is over before its pixel data begin; pydicom takes that for a short header."""
    deflated = common["transfer_syntax_uid"] == DeflatedExplicitVRLittleEndian
    return common["sop_class_uid"] in IMAGE_CLASSES and not deflated and file.tell() >= size


def _true_syntax(file: BinaryIO, stated: str) -> str:
    """The stated transfer syntax, but for uncompressed files that are encoded otherwise than they state:
    what stands before the pixel data is believed, since every pixel would be shifted."""
    if stated not in (EXPLICIT_LE, IMPLICIT_LE):
        return stated
    start = _peek(file)
    if start[:4] != _PIXEL_TAG:
        return stated
    return EXPLICIT_LE if start[4:8] in _PIXEL_VRS else IMPLICIT_LE


def _peek(file: BinaryIO) -> bytes:
    """The next twelve bytes; the file stays where it is."""
    at = file.tell()
    start = file.read(12)
    file.seek(at)
    return start


def _pixels_at(file: BinaryIO, syntax: str, promised: int) -> int | None:
    """Where the value of the pixel data begins; None if anything there is not as it nearly always is,
    the stated length above all."""
    at, start = file.tell(), _peek(file)
    if len(start) < 12 or start[:4] != _PIXEL_TAG:
        return None
    explicit = start[4:8] in _PIXEL_VRS
    (length,) = struct.unpack_from("<I", start, 8 if explicit else 4)
    if syntax in (EXPLICIT_LE, IMPLICIT_LE):
        as_stated = explicit == (syntax == EXPLICIT_LE) and promised <= length <= promised + 1
        return at + (12 if explicit else 8) if as_stated else None
    return at + 12 if explicit and syntax in READABLE_HERE else None


def _has_all_pixels(file: BinaryIO, size: int, common: dict[str, Any]) -> bool:
    """Compare what the file holds after its header with what the header promises."""
    if not common["rows"]:
        return True
    syntax = common["transfer_syntax_uid"]
    if syntax == DeflatedExplicitVRLittleEndian:
        return True
    if _is_encapsulated(syntax):
        return _has_delimiter(file, size)
    return size - file.tell() - (8 if syntax == IMPLICIT_LE else 12) >= _promised_bytes(common)


def _has_excess(file: BinaryIO, common: dict[str, Any]) -> bool:
    """A little more than promised is sloppy, twice as much is another image than the header describes."""
    if common["transfer_syntax_uid"] not in (EXPLICIT_LE, IMPLICIT_LE):
        return False
    start = _peek(file)
    if len(start) < 12 or start[:4] != _PIXEL_TAG:
        return False
    (length,) = struct.unpack_from("<I", start, 8 if start[4:8] in _PIXEL_VRS else 4)
    return 0 < 2 * _promised_bytes(common) <= length


def _promised_bytes(common: dict[str, Any]) -> int:
    values = common["rows"] * common["columns"] * common["samples"] * common["frames"]
    return values * common["bits_allocated"] // 8


@lru_cache(maxsize=256)
def _is_encapsulated(syntax: str) -> bool:
    uid = pydicom.uid.UID(syntax)
    return uid.is_transfer_syntax and uid.is_encapsulated


def _has_delimiter(file: BinaryIO, size: int) -> bool:
    """Compressed pixel data end with a delimiter, nearly always the last bytes of the file."""
    start = file.tell()
    file.seek(max(start, size - 1024))
    if _DELIMITER in file.read():
        return True
    file.seek(start)
    return _DELIMITER in file.read()


def _frames(dataset: Dataset | Elements, common: dict[str, Any]) -> Iterator[Header]:
    groups = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if not groups:
        yield Header(frame=None, **common, **_classic(dataset))
        return
    assert isinstance(dataset, Dataset)
    shared = _items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()]
    if len(groups) != common["frames"]:
        raise ValueError(f"has {common['frames']} frames but describes {len(groups)}")
    for index, group in enumerate(groups):
        yield Header(frame=index, **common, **_enhanced(dataset, group, shared[0]))


def _is_tiled(dataset: Dataset) -> bool:
    words = {word.upper() for word in _texts(dataset, "ImageType")}
    return "MOSAIC" in words or (_whole(dataset, _UIH_TILES) or 0) > 1


def _tiles(dataset: Dataset, common: dict[str, Any], file: BinaryIO) -> Iterator[Header]:
    """One header for each slice of a mosaic, or one for the whole that no geometry describes."""
    classic = _classic(dataset)
    described = classic["orientation"] and classic["position_mm"] and classic["row_column_spacing_mm"]
    positions: Sequence[tuple[float, ...]] = ()
    if described and common["frames"] == 1:
        measures = {**common, "row_column_spacing_mm": classic["row_column_spacing_mm"]}
        positions = slice_positions(file, measures, classic["orientation"], classic["position_mm"])
    if not positions:
        classic["image_type"] = (*classic["image_type"], "MOSAIC")
        yield Header(frame=None, **common, **classic)
        return
    side = tile_side(len(positions))
    common = {**common, "rows": common["rows"] // side, "columns": common["columns"] // side}
    for index, position in enumerate(positions):
        place = {**classic, "position_mm": position}
        yield Header(frame=index, tiles=len(positions), **common, **place)


def _classic(dataset: Dataset | Elements) -> dict[str, Any]:
    return {
        **_alike(_acquired, dataset, ""),
        "position_mm": _numbers(dataset, "ImagePositionPatient", 3),
    }


def _acquired(dataset: Dataset | Elements, _syntax: str) -> dict[str, Any]:
    return {
        "image_type": _texts(dataset, "ImageType"),
        "orientation": _numbers(dataset, "ImageOrientationPatient", 6),
        "row_column_spacing_mm": _numbers(dataset, "PixelSpacing", 2),
        "thickness_mm": _number(dataset, "SliceThickness"),
        "slope": _stated(dataset, "RescaleSlope"),
        "intercept": _stated(dataset, "RescaleIntercept"),
        "rescale_type": _text(dataset, "RescaleType").upper(),
        "has_lut": bool(_items(dataset, "ModalityLUTSequence")),
        "echo": (_rounded(_number(dataset, "EchoTime")), "/".join(_texts(dataset, "EchoNumbers"))),
        "b_value": _b_value(dataset),
        "gradient": _numbers(dataset, "DiffusionGradientOrientation", 3),
        "temporal_position": _whole(dataset, "TemporalPositionIdentifier"),
        "trigger_ms": _number(dataset, "TriggerTime"),
        "repetition_ms": _rounded(_number(dataset, "RepetitionTime")),
        "inversion_ms": _rounded(_number(dataset, "InversionTime")),
        "flip_deg": _number(dataset, "FlipAngle"),
        "cardiac_phase": _number(dataset, "NominalPercentageOfCardiacPhase"),
    }


def _b_value(dataset: Dataset | Elements) -> float | None:
    """The standard attribute, else the private one of Siemens, GE (1e9 marks a scaled one), Philips or
    United Imaging."""
    standard = _number(dataset, "DiffusionBValue")
    if standard is not None:
        return standard
    for tag in (_SIEMENS_B_VALUE, _GE_B_VALUE, _PHILIPS_B_VALUE, _UIH_B_VALUE):
        values = _texts(dataset, tag)
        if values and (number := _to_float(values[0])) is not None:
            return number % 1e9
    return None


def _enhanced(dataset: Dataset, group: Dataset, shared: Dataset) -> dict[str, Any]:
    def macro(*keywords: str) -> Dataset:
        for place in (group, shared):
            for keyword in keywords:
                if items := place.get(keyword):
                    return items[0]
        return Dataset()

    content, diffusion = macro("FrameContentSequence"), macro("MRDiffusionSequence")
    rescale, measures = macro("PixelValueTransformationSequence"), macro("PixelMeasuresSequence")
    kind = macro("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "FrameTypeSequence")
    directions = diffusion.get("DiffusionGradientDirectionSequence") or [Dataset()]
    cardiac, timing = macro("CardiacSynchronizationSequence"), macro("MRTimingAndRelatedParametersSequence")
    echo_ms = _rounded(_number(macro("MREchoSequence"), "EffectiveEchoTime"))
    return {
        "image_type": _texts(kind, "FrameType") or _texts(dataset, "ImageType"),
        "orientation": _numbers(macro("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        "position_mm": _numbers(macro("PlanePositionSequence"), "ImagePositionPatient", 3),
        "row_column_spacing_mm": _numbers(measures, "PixelSpacing", 2),
        "thickness_mm": _number(measures, "SliceThickness"),
        "slope": _stated(rescale, "RescaleSlope"),
        "intercept": _stated(rescale, "RescaleIntercept"),
        "rescale_type": _text(rescale, "RescaleType").upper(),
        "has_lut": bool(_items(dataset, "ModalityLUTSequence")),
        "echo": (echo_ms, _text(content, "StackID")),
        "b_value": _number(diffusion, "DiffusionBValue"),
        "gradient": _numbers(directions[0], "DiffusionGradientOrientation", 3),
        "temporal_position": _whole(content, "TemporalPositionIndex"),
        "trigger_ms": _number(cardiac, "NominalCardiacTriggerDelayTime"),
        "cardiac_phase": _number(cardiac, "NominalPercentageOfCardiacPhase"),
        "repetition_ms": _rounded(_number(timing, "RepetitionTime")),
        "inversion_ms": _rounded(_number(macro("MRModifierSequence"), "InversionTimes")),
        "flip_deg": _number(timing, "FlipAngle"),
    }


def _items(dataset: Dataset | Elements, keyword: str) -> Sequence[Dataset]:
    if isinstance(dataset, Elements):  # a file with a sequence that matters here is read by pydicom
        return ()
    return dataset.get(keyword) or ()


def _text(dataset: Dataset | Elements, keyword: str) -> str:
    return "/".join(_texts(dataset, keyword))


def _texts(dataset: Dataset | Elements, key: Any) -> tuple[str, ...]:
    if isinstance(dataset, Elements):
        return dataset.texts(_TAG_OF[key])
    try:
        value = dataset[key].value if key in dataset else None
    except MALFORMED:
        return ()
    if value is None:
        return ()
    values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    cleaned = (clean(str(v)) for v in values if v is not None)
    return tuple(text for text in cleaned if text)


def _uid(*candidates: str) -> str:
    """The first that may pass for a UID; strict on what could be a path, lenient on digits."""
    return next((text for text in candidates if UID_FORM.fullmatch(text)), "")


def _number(dataset: Dataset | Elements, keyword: Any) -> float | None:
    values = _texts(dataset, keyword)
    return _to_float(values[0]) if values else None


def _stated(dataset: Dataset | Elements, keyword: str) -> float | None:
    """A number, None where there is none, infinity where something stands there that is none: that has
    to be refused, not taken for absent."""
    number = _number(dataset, keyword)
    if number is not None or isinstance(dataset, Elements) or keyword not in dataset:
        return number
    raw = dataset.get_item(keyword)
    return math.inf if raw is not None and raw.value not in (None, "", b"") else None


def _numbers(dataset: Dataset | Elements, keyword: str, count: int) -> tuple[float, ...] | None:
    numbers = [_to_float(text) for text in _texts(dataset, keyword)]
    known = tuple(n for n in numbers if n is not None)
    return known if len(known) == len(numbers) == count else None


def _whole(dataset: Dataset | Elements, keyword: Any) -> int | None:
    number = _number(dataset, keyword)
    return None if number is None else int(number)


def _to_float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)
