"""Folders of DICOM files -> mutants -> what the readers made of each: accepted, refused, or a fault.

    python -m evaluation.fuzz [DIR ...] --mutations 10000 --seed 20261123 --keep FAULTS

Each mutant is one changed file in a study of up to four, read in a child process with limits. It is
accepted, or refused with a code; whatever else happens is a fault: a crash, a hang, memory, an
exception that nobody caught, a promise that was not kept. A mutant follows from the files, the seed
and its number alone, so that `--only NUMBER` makes it again. Knows DICOM as bytes (PS3.5 sections 7.1
and A.4, PS3.10 section 7.1), so that it can break what pydicom would never write.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID_dictionary
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mla_med.dicom.apart import Limits, ReaderError, ReaderProcess
from mla_med.dicom.certificate import certify
from mla_med.dicom.header import MALFORMED, Header, NotDicomError, quiet_pydicom, read_headers
from mla_med.dicom.select import choose_series
from mla_med.dicom.study import group_series, read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import ConfigError, MlaMedError, SeriesError
from mla_med.files import write_text

SEED = 20261123
MUTATIONS = 10_000
LIMITS = Limits(memory_bytes=3 * 2**30, cpu_s=20, wall_s=30)
LARGE_BYTES = 2 * 2**20
"""Larger files take their turn less often."""
KIN = 4
"""Files of a study of one series, the mutant among them."""
FAULTS = {
    "READER_CRASHED": "CRASH",
    "READER_TIMEOUT": "HANG",
    "READER_OUT_OF_MEMORY": "MEMORY",
    "READER_FAILED": "UNCAUGHT",
}

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
SHORT_VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
SYNTAXES = sorted(uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax")
DEFLATED, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
UID_FORM = re.compile(r"[0-9A-Za-z.-]{1,64}")
BOMB_BYTES = 2**30

SHAPE = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored"),
    *("HighBit", "SamplesPerPixel", "PixelRepresentation"),
)
SIZES = (0, 1, 2, 3, 7, 8, 12, 16, 17, 32, 64, 255, 1024, 16384, 32767, 32768, 65535)
FRAMES = (*b"2147483648 -1 0 99999999999999999999 1e9 2\\2 65535 2".split(), b"\xff\xff")
LISTS = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ConvolutionKernel", "ImageType"]
NUMBERS = (
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", "SeriesNumber", "InstanceNumber", "KVP"),
    *("EchoTime", "AcquisitionNumber", "TriggerTime", "PatientAge", "DiffusionBValue", "FlipAngle"),
    *("WindowWidth", "InversionTime"),
)
ODD_NUMBERS = (
    *b"NaN inf -inf 1e308 -1e308 1e-320 1e39 0 -0 abc 1_000 1,5 0x10 --1 99999999 -32768 1e5 .".split(),
    *(b"", b"9" * 400, "٣".encode(), b"\0", b"1 2"),
)
UIDS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"]
ODD_UIDS = (
    *(b"../../x", b"/etc/passwd", b"..\\x", b"1.2\n3", b"1" * 300, b"", b"..", b"C:\\x", b"2.25.1\\2.25.2"),
    *(b"1.2/3", "é".encode(), b"-rf", b"con"),
)
TEXTS = (
    *("SeriesDescription", "StudyDescription", "Modality", "BodyPartExamined", "ImageType", "PatientID"),
    *("StudyDate", "PatientAge", "PhotometricInterpretation", "PatientBirthDate", "PatientSex"),
    *("ReasonForStudy", "PatientName", "ContrastBolusAgent", "ProtocolName", "LossyImageCompression"),
    *("Manufacturer", "SequenceName", "ScanningSequence"),
)
ODD_TEXTS = (
    *(b"a\nb", b"\x1b[31m", b"<script>", b"=cmd()", "\u202egpj".encode(), b"\0" * 100, b"\\" * 50_000),
    *(b"[", b"(*", b"99991399", b"00000000", b"999Y", b"MOSAIC", b"LOCALIZER", b"CT", b"a" * 60_000, b"."),
    *(b"\\b", b"(a+)+$"),
)
CHARSETS = (
    *("ISO_IR 192", "ISO_IR 999", "ISO 2022 IR 87", "ISO 2022 IR 58\\ISO 2022 IR 149", "GB18030", "utf-7"),
    *("hex", "\\" * 10_000, "\\\\ISO 2022 IR 13", "\0", "", "ISO_IR 100\\ISO_IR 192", "idna", "zlib"),
    *("ISO_IR 166",),
)
CODED = (b"\x1b$B%d\x1b(B", b"\x1b$)C\xff\xfe", b"\xff\xfe\xfd", b"\x1b" * 500, b"\xed\xa0\x80", b"\xc3")
WRONG_TAGS = (ITEM, ITEM_END, SEQUENCE_END, PIXEL_DATA, 0x7FE00008, 0x7FE00009, 0x00020010, 0x00080005, 0)
SEQUENCES = (0x52009230, 0x52009229, 0x00180012, 0x00400275, 0x0040100A, 0x00081140, 0x00091010)
"""The readers look into most of them."""
MAGICS = (b"MZ", b"\x7fELF", b"<html>", b"PK\x03\x04", b"\x1f\x8b\x08\0", b"%PDF-")
FILE_IDS = (b"..\\..\\X", b"\\ETC\\PASSWD", b"", b"DICOMDIR", b"0.DCM", b"A" * 500, b"\0")
FILE_NAMES = ("line\nfeed", "esc\x1b[31m", "\u202egpj", "=cmd()", "<b>", "\udcff", "x" * 255, "-rf")
ARCHIVES = (
    *("sound", "traversal", "twice", "link", "bomb", "damaged", "directory", "truncated", "nested", "many"),
    *("encrypted", "name", "size", "method"),
)
TRAVERSALS = ("../../escaped", "/tmp/escaped", "..\\..\\escaped", "a/../../escaped", "C:\\escaped")
MEMBERS = ("a\nb", "é" * 100, "x" * 60_000, "a//b", ".", "\x1b[31m", "con", "/" * 500, "a/" * 2000, "..")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to mutate, with up to three others that make a series with it."""

    name: str
    """As it is called below its folder."""
    path: Path
    size: int
    kin: tuple[bytes | Path, ...] = ()
    """The series; its first file is the one to mutate. Empty: the file stands alone."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A study with a damaged file."""

    source: str
    mutation: str
    """What was done to it, in the order in which it was done."""
    files: Mapping[str, bytes]
    entry: str = ""
    """The file that is given to the reader; empty: the folder of them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the readers said of a study."""

    volumes: int
    codes: tuple[str, ...]
    """Of series that were refused and of files that are not part of any."""


@dataclass(frozen=True, slots=True)
class Outcome:
    index: int
    source: str
    mutation: str
    result: str
    """ACCEPTED, REFUSED, or the kind of fault: CRASH, HANG, MEMORY, UNCAUGHT, ESCAPED."""
    codes: tuple[str, ...]
    detail: str
    """Of a fault: the signal, the limit, or the exception's class and place."""
    seconds: float
    peak_bytes: int
    """The most memory that its reader had in use."""

    @property
    def is_fault(self) -> bool:
        return self.result not in ("ACCEPTED", "REFUSED")


def read_everything(path: Path) -> Reading:
    """A study through all readers, in the child. AssertionError where they break a promise."""
    study = read_study(path)
    for uid in (study.study_uid, *(series.series_uid for series in study.series)):
        assert UID_FORM.fullmatch(uid), "a UID that could be a path"
    verdicts = choose_series(study)
    codes = [problem.code for problem in study.problems]
    volumes = 0
    for verdict in verdicts:
        if not verdict.accepted:
            assert verdict.reason is not None
            codes.append(verdict.reason.code)
            continue
        try:
            volume = read_volume(verdict.series)
        except SeriesError as error:
            codes.append(error.code)
            continue
        assert np.isfinite(volume.voxels).all(), "voxels that are no numbers"
        assert np.isfinite(volume.affine).all(), "an affine that is no matrix"
        volumes += 1
    for words in (*(p.words for p in study.problems), *(v.reason.words for v in verdicts if v.reason)):
        assert words.isprintable(), "words that are not one line"
    return Reading(volumes, tuple(sorted(set(codes))))


def fuzz(
    sources: Sequence[Source],
    mutations: int = MUTATIONS,
    seed: int = SEED,
    *,
    workers: int = 2,
    read: Callable[[Path], Reading] = read_everything,
    limits: Limits = LIMITS,
    keep: Path | None = None,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Outcome, ...]:
    """One outcome for each mutant, in their order. Faulty mutants are saved in `keep`."""
    numbers = iter(range(mutations))
    outcomes: list[Outcome] = []
    stopped = threading.Event()

    def work(place: Path) -> None:
        with ReaderProcess(limits) as reader:
            while not stopped.is_set() and (index := next(numbers, None)) is not None:
                mutant = make_mutant(sources, seed, index)
                outcome = _try(mutant, index, place, reader, read)
                if outcome.is_fault and keep is not None:
                    _save(mutant, keep / f"{index}")
                outcomes.append(outcome)
                progress(outcome)

    with tempfile.TemporaryDirectory(prefix="mla-med-fuzz-") as folder, ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(work, Path(folder, f"{number}")) for number in range(workers)]:
                done.result()
        finally:
            stopped.set()
    return tuple(sorted(outcomes, key=lambda outcome: outcome.index))


def _try(
    mutant: Mutant, index: int, place: Path, reader: ReaderProcess, read: Callable[[Path], Reading]
) -> Outcome:
    study = place / "case" / f"{index}"
    _save(mutant, study)
    codes: tuple[str, ...] = ()
    result, detail = "REFUSED", ""
    began = time.monotonic()
    try:
        reading = reader.call(read, study / mutant.entry)
        codes = reading.codes
        result = "ACCEPTED" if reading.volumes else "REFUSED"
    except ReaderError as error:
        result, codes, detail = FAULTS[error.code], (error.code,), error.detail
    except MlaMedError as error:
        codes = (error.code,)
    seconds = time.monotonic() - began
    if [*place.iterdir(), *study.parent.iterdir()] != [study.parent, study]:
        result, detail = "ESCAPED", "something was written outside the study"
    shutil.rmtree(place)
    return Outcome(
        index, mutant.source, mutant.mutation, result, codes, detail, round(seconds, 3), reader.peak_bytes
    )


def _save(mutant: Mutant, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in mutant.files.items():
        (folder / name).write_bytes(data)


# ---- sources


def packaged_files() -> Path:
    """The test files in pydicom's wheel."""
    return Path(pydicom.__file__).parent / "data" / "test_files"


def find_sources(folders: Sequence[Path]) -> tuple[Source, ...]:
    """The DICOM files below some folders, by name, each with a series to stand in where one can be made."""
    found: list[Source] = []
    for folder in folders:
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink() and _is_dicom(p)]
        series = _series(paths)
        for path in paths:
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            others = series.get(path, [path])
            neighbours = _neighbours(path, others)
            # The first file of a series stands for all: clones are kept in memory.
            cloned = _clones(path) if size <= LARGE_BYTES and path == others[0] else ()
            found += [Source(name, path, size, kin) for kin in (neighbours, cloned) if kin]
            if not neighbours and not cloned:
                found.append(Source(name, path, size))
    if not found:
        raise ConfigError(f"No DICOM file below {', '.join(map(str, folders))}. Give folders that hold some.")
    return tuple(found)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x08\0", b"\x02\0")


def _series(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """For each image the files of its series, in the order of their places."""
    series: dict[str, list[tuple[float, Path]]] = {}
    for path in paths:
        for header in _headers(path)[:1]:
            if header.position_mm and header.orientation:
                normal = np.cross(header.orientation[:3], header.orientation[3:])
                place = float(normal @ header.position_mm)
                series.setdefault(header.series_uid, []).append((place, path))
    ordered = [[path for _, path in sorted(slices)] for slices in series.values()]
    return {path: files for files in ordered for path in files}


def _headers(path: Path) -> tuple[Header, ...]:
    try:
        return read_headers(path)
    except (NotDicomError, OSError, *MALFORMED):
        return ()


def _neighbours(path: Path, files: list[Path]) -> tuple[Path, ...]:
    """The file and those beside it, if they are a volume as they are."""
    start = max(0, min(files.index(path) - 1, len(files) - KIN))
    near = files[start : start + KIN]
    series = group_series([header for file in near for header in _headers(file)])
    if len(near) < KIN or len(series) != 1:
        return ()
    try:
        certify(series[0])
    except SeriesError:
        return ()
    return (path, *(other for other in near if other != path))


def _clones(path: Path) -> tuple[bytes, ...]:
    """Four slices of one image in its own encoding, so that its decoder has a volume to fill."""
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, force=True)
            if "PixelData" not in dataset or dataset.get("SamplesPerPixel", 1) != 1:
                return ()
            if int(dataset.get("NumberOfFrames") or 1) > 1:
                return ()
            _make_slice(dataset)
            return tuple(_clone(dataset, k) for k in range(KIN))
    except MALFORMED:
        return ()


def _make_slice(dataset: pydicom.Dataset) -> None:
    if dataset.get("Modality") not in ("CT", "MR"):
        dataset.Modality = "MR"
    dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{2 if dataset.Modality == 'CT' else 4}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]
    dataset.pop("NumberOfFrames", None)


def _clone(dataset: pydicom.Dataset, k: int) -> bytes:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.10{k}"
    dataset.ImagePositionPatient = [0, 0, 2 * k]
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


# ---- mutants


def make_mutant(sources: Sequence[Source], seed: int, index: int) -> Mutant:
    choice = random.Random(f"{seed}:{index}:source")
    return mutate(choice.choices(sources, [_weight(source) for source in sources])[0], seed, index)


def _weight(source: Source) -> float:
    """Small files are read often, and files that can become a volume more often than others."""
    size, often = source.size, 5.0 if source.kin else 1.0
    return often * (1.0 if size < 2**16 else 0.4 if size < 2**19 else 0.1 if size <= LARGE_BYTES else 0.01)


def mutate(source: Source, seed: int, index: int) -> Mutant:
    """The same for the same file, seed and number."""
    rng = random.Random(f"{seed}:{index}")
    alone = not source.kin or rng.random() < 0.1
    files = [_bytes(file) for file in ((source.path,) if alone else source.kin)]
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choices(list(MUTATIONS_BY_NAME), [COSTLY.get(name, 1.0) for name in MUTATIONS_BY_NAME])[0]
        done.append(name)
        how = rng.random()
        # Sometimes to the whole series: what is the same in all files passes more checks.
        number = len(files) if rng.random() < 0.3 else 1
        for k in range(number):
            files[k] = MUTATIONS_BY_NAME[name](files[k], random.Random(how))
    packed, entry, packing = _pack(source, files, rng)
    return Mutant(source.name, " + ".join([*done, *packing]), packed, entry)


def _bytes(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _pack(source: Source, files: list[bytes], rng: random.Random) -> tuple[dict[str, bytes], str, list[str]]:
    """-> files by name, the one to give to the reader, what was done."""
    # A name of its own for each mutant: readers remember files by name, time and size.
    names = [f"{k}.dcm" for k in range(len(files))]
    if source.path.name.upper().startswith("DICOMDIR"):
        return {"DICOMDIR": files[0]}, rng.choice(("", "DICOMDIR")), ["dicomdir"]
    plain = dict(zip(names, files, strict=True))
    roll = rng.random()
    if roll < 0.06:
        return {"0.dcm.gz": _gzipped(files[0], rng)} | dict(list(plain.items())[1:]), "", ["gzip"]
    if roll < 0.14:
        name, packed = _zipped(plain, rng)
        return {"study.zip": packed}, rng.choice(("", "study.zip")), [name]
    if roll < 0.2:
        return plain, "0.dcm", ["file"]
    if roll < 0.22:
        return plain | {"DICOMDIR": _dicomdir(rng)}, rng.choice(("", "DICOMDIR")), ["dicomdir beside"]
    if roll < 0.24:
        odd = rng.choice(FILE_NAMES)
        return dict(zip([odd, *names[1:]], files, strict=True)), "", ["file name"]
    return plain, "", []


# ---- mutations: bytes, random numbers -> bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    # Half of them in the header, where most decisions are made.
    end = min(len(data), 4096) if rng.random() < 0.5 else len(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if end else 0):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def byte_run(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 256, 4096))
    fill = rng.choice((b"\0", b"\xff", b"\\", b"9", b"\x7f", b" ", b"\x1b")) * size
    return data[:at] + rng.choice((fill, rng.randbytes(size))) + data[at + size :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    ends = [end for e in elements(data) for end in (e.at, e.value_at)]
    ends.append(rng.randrange(len(data) + 1))
    return data[: max(0, rng.choice(ends) + rng.choice((-1, 0, 0, 1, 2, 5)))]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 3, 8, 100, 10_000)) :]


def insert_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 3, 8, 100))) + data[at:]


def move_part(data: bytes, rng: random.Random) -> bytes:
    start, at = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((8, 64, 1024))]
    return data[:at] + part + data[at + len(part) :]


def wrong_length(data: bytes, rng: random.Random) -> bytes:
    element = _choose(data, rng)
    if element is None:
        return data
    n = element.length
    near = (0, 1, 3, n + 1, n - 1, n + 2, n * 2, len(data))
    return _with_length(
        data, element, rng.choice((*near, UNDEFINED, UNDEFINED - 1, 2**31 - 1, 2**31, 0xFFFF))
    )


def wrong_vr(data: bytes, rng: random.Random) -> bytes:
    element = _choose(data, rng, lambda e: bool(e.vr))
    if element is None:
        return data
    vr = rng.choice((*SHORT_VRS, *LONG_VRS, b"\0\0", b"??", b"  ", b"ox"))
    return data[: element.at + 4] + vr + data[element.at + 6 :]


def swap_tags(data: bytes, rng: random.Random) -> bytes:
    one, other = _choose(data, rng), _choose(data, rng)
    if one is None or other is None:
        return data
    changed = bytearray(data)
    changed[one.at : one.at + 4] = data[other.at : other.at + 4]
    changed[other.at : other.at + 4] = data[one.at : one.at + 4]
    return bytes(changed)


def wrong_tag(data: bytes, rng: random.Random) -> bytes:
    element = _choose(data, rng)
    if element is None:
        return data
    return data[: element.at] + _tag(rng.choice(WRONG_TAGS)) + data[element.at + 4 :]


def repeat_element(data: bytes, rng: random.Random) -> bytes:
    element = _choose(data, rng)
    if element is None:
        return data
    part = data[element.at : element.end][: 2**16]
    times = rng.choice((1, 1, 2, 1000 if len(part) < 64 else 3))
    return data[: element.at] + part * times + data[element.at :]


def remove_elements(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        element = _choose(data, rng)
        if element is not None:
            data = data[: element.at] + data[element.end :]
    return data


def nest_sequences(data: bytes, rng: random.Random) -> bytes:
    """20,000 deep: PS3.5 section 7.5 sets no end to it."""
    tag = rng.choice(SEQUENCES)
    depth = rng.choice((20_000, 20_000, 1_000, 100))
    explicit = _is_explicit(data)
    if rng.random() < 0.5:
        parts = [_header(tag, b"SQ", UNDEFINED, explicit) + _tag(ITEM) + _LENGTH.pack(UNDEFINED)] * depth
        if rng.random() < 0.7:
            parts += [_tag(ITEM_END) + bytes(4) + _tag(SEQUENCE_END) + bytes(4)] * depth
    else:
        head = len(_header(tag, b"SQ", 0, explicit)) + 8
        inner = [head * k for k in reversed(range(depth))]
        parts = [_header(tag, b"SQ", 8 + n, explicit) + _tag(ITEM) + _LENGTH.pack(n) for n in inner]
    return _insert(data, tag, b"".join(parts))


def undefined_length(data: bytes, rng: random.Random) -> bytes:
    """A length of which nobody says where it ends."""
    if rng.random() < 0.5:
        element = _choose(data, rng, lambda e: e.length_size == 4 and e.tag != SEQUENCE_END)
        return data if element is None else _with_length(data, element, UNDEFINED)
    element = _choose(data, rng, lambda e: e.tag in (ITEM_END, SEQUENCE_END))
    return data if element is None else data[: element.at] + data[element.end :]


def extreme_size(data: bytes, rng: random.Random) -> bytes:
    for keyword in rng.sample(SHAPE, rng.choice((1, 1, 2, 3))):
        data = set_value(data, keyword, b"US", struct.pack("<H", rng.choice(SIZES)))
    if rng.random() < 0.3:
        data = set_value(data, "NumberOfFrames", b"IS", rng.choice(FRAMES))
    return data


def odd_number(data: bytes, rng: random.Random) -> bytes:
    keyword = rng.choice((*LISTS, *NUMBERS))
    count = rng.choice((1, 2, 3, 6, 1000)) if keyword in LISTS else rng.choice((1, 1, 1, 2))
    return set_value(data, keyword, b"DS", b"\\".join(rng.choice(ODD_NUMBERS) for _ in range(count)))


def odd_padding(data: bytes, rng: random.Random) -> bytes:
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = rng.choice((b"", b"\xff\x7f", rng.randbytes(2)))
        data = set_value(data, keyword, rng.choice((b"US", b"SS")), value)
    return data


def other_syntax(data: bytes, rng: random.Random) -> bytes:
    uid = rng.choice((*SYNTAXES, "", "1.2.3", "../../x", f"{DEFLATED} "))
    return set_value(data, "TransferSyntaxUID", b"UI", _even(uid.encode()))


def deflate(data: bytes, rng: random.Random) -> bytes:
    """The same data set deflated, whole, cut, or damaged."""
    start = _body_at(data)
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = squeeze.compress(data[start:]) + squeeze.flush()
    head = _group_length(set_value(data[:start], "TransferSyntaxUID", b"UI", DEFLATED.encode()))
    return head + rng.choice((body, body[: len(body) // 2], flip_bits(body, rng)))


def deflate_bomb(data: bytes, rng: random.Random) -> bytes:
    start, pixels = _body_at(data), [e for e in elements(data) if e.tag == PIXEL_DATA]
    end = pixels[0].at if pixels else len(data)
    tag, vr = rng.choice(((PIXEL_DATA, b"OB"), (PIXEL_DATA, b"OW"), (0x00090011, b"UN"), (0x00080018, b"UI")))
    size = rng.choice((BOMB_BYTES, 2**28 - 2**20))
    body = data[start:end] if tag == PIXEL_DATA else b""
    body += _header(tag, vr if vr in LONG_VRS else b"UN", min(size, UNDEFINED - 1), True)
    head = _group_length(set_value(data[:start], "TransferSyntaxUID", b"UI", DEFLATED.encode()))
    return head + _zeros(body, size)


def odd_charset(data: bytes, rng: random.Random) -> bytes:
    data = set_value(data, "SpecificCharacterSet", b"CS", rng.choice(CHARSETS).encode())
    for keyword in ("PatientName", "PatientID", "SeriesDescription", "StudyDescription", "BodyPartExamined"):
        data = set_value(data, keyword, b"LO", rng.choice((*CODED, rng.randbytes(64))))
    return data


def odd_uid(data: bytes, rng: random.Random) -> bytes:
    return set_value(data, rng.choice(UIDS), b"UI", _even(rng.choice(ODD_UIDS)))


def odd_text(data: bytes, rng: random.Random) -> bytes:
    return set_value(data, rng.choice(TEXTS), b"LO", rng.choice(ODD_TEXTS))


def damage_pixels(data: bytes, rng: random.Random) -> bytes:
    """In the first bytes of the pixel data, where compressed images state their sizes."""
    pixels = [e for e in elements(data) if e.tag == PIXEL_DATA]
    if not pixels:
        return data
    start = pixels[0].value_at
    window = rng.choice((16, 128, 512, 2**20))
    part = data[start : start + window]
    change = rng.choice((flip_bits, byte_run, cut_out, insert_bytes))
    return data[:start] + change(part, rng) + data[start + window :]


def damage_fragments(data: bytes, rng: random.Random) -> bytes:
    fragments = [e for e in elements(data) if e.in_pixels]
    if not fragments:
        return damage_pixels(data, rng)
    e = rng.choice(fragments)
    value = data[e.value_at : e.end]
    half = value[: len(value) // 2]
    changed = (
        b"",
        _fragment(b""),
        _fragment(value) * 2,
        _fragment(half),
        _fragment(bytes(len(value))),
        _fragment(rng.randbytes(len(value))),
        _tag(ITEM) + _LENGTH.pack(rng.choice((UNDEFINED, 2**31, len(value) + 1))) + value,
        _tag(SEQUENCE_END) + bytes(4),
    )
    return data[: e.at] + rng.choice(changed) + data[e.end :]


def _fragment(value: bytes) -> bytes:
    return _tag(ITEM) + _LENGTH.pack(len(value)) + value


def damage_meta(data: bytes, rng: random.Random) -> bytes:
    """Preamble and file meta information."""
    start = _body_at(data)
    changed = (
        rng.choice(MAGICS).ljust(128, b"\0") + data[128:],
        data[132:],
        data[start:],
        data[:128] + b"dicm" + data[132:],
        data[:132] + data[start:],
        data[:start] + data[132:start] + data[start:],
        data[:140] + rng.choice((bytes(4), b"\xff" * 4, rng.randbytes(4))) + data[144:],
        data[:132] + wrong_length(data[132:start], rng) + data[start:],
    )
    return rng.choice(changed)


MUTATIONS_BY_NAME: dict[str, Callable[[bytes, random.Random], bytes]] = {
    mutation.__name__: mutation
    for mutation in (
        *(flip_bits, byte_run, truncate, cut_out, insert_bytes, move_part),
        *(wrong_length, wrong_vr, swap_tags, wrong_tag, repeat_element, remove_elements),
        *(nest_sequences, undefined_length, extreme_size, odd_number, odd_padding, other_syntax),
        *(deflate, deflate_bomb, odd_charset, odd_uid, odd_text),
        *(damage_pixels, damage_fragments, damage_meta),
    )
}
COSTLY = {"deflate_bomb": 0.2, "nest_sequences": 0.5}
"""What takes long to read takes its turn less often."""


# ---- packing


def _gzipped(data: bytes, rng: random.Random) -> bytes:
    packed = gzip.compress(data, 1, mtime=0)
    changed = (
        packed,
        packed[: len(packed) // 2],
        packed[:-4] + b"\xff" * 4,
        packed + b"trailing",
        packed + packed,
        gzip.compress(packed, 1, mtime=0),
        flip_bits(packed, rng),
        packed[:10] + _zeros(data[:4096], 2**28),
        b"\x1f\x8b\x08",
    )
    return rng.choice(changed)


def _zipped(files: Mapping[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    """-> what kind of archive, its bytes."""
    kind = rng.choice(ARCHIVES)
    extra = {
        "traversal": [rng.choice(TRAVERSALS)],
        "twice": ["study/twice.dcm"] * 2,
        "many": [f"{number}" for number in range(3000)],
        "name": [rng.choice(MEMBERS)],
    }
    one = next(iter(files.values()))
    packed = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(_info(f"study/{name}"), data)
        for name in extra.get(kind, ()):
            archive.writestr(_info(name), b"" if kind == "many" else one)
        if kind == "link":
            link = _info("study/link")
            link.create_system, link.external_attr = 3, rng.choice((0o120777, 0o010777, 0o020777)) << 16
            archive.writestr(link, "/etc/passwd")
        if kind == "nested":
            archive.writestr(_info("inner.zip"), packed.getvalue() + bytes(10))
        if kind == "bomb":
            archive.writestr(_info("study/bomb.dcm"), one + bytes(2**24))
    return f"zip {kind}", _break_zip(packed.getvalue(), kind, rng)


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _break_zip(packed: bytes, kind: str, rng: random.Random) -> bytes:
    directory = packed.find(b"PK\x01\x02")
    if kind == "damaged":
        return flip_bits(packed[:directory], rng) + packed[directory:]
    if kind == "directory":
        return packed[:directory] + rng.choice((flip_bits, byte_run, cut_out))(packed[directory:], rng)
    if kind == "truncated":
        return packed[: rng.randrange(len(packed))]
    changes = {"encrypted": (8, 6, 1), "method": (10, 8, rng.choice((1, 12, 14, 93, 99)))}
    if kind in changes:
        central, local, number = changes[kind]
        places = [(m.start() + central) for m in re.finditer(rb"PK\x01\x02", packed)]
        places += [(m.start() + local) for m in re.finditer(rb"PK\x03\x04", packed)]
        changed = bytearray(packed)
        for place in places:
            changed[place : place + 2] = struct.pack("<H", number)
        return bytes(changed)
    if kind == "size":
        at = directory + 24
        return packed[:at] + rng.choice((bytes(4), b"\xff" * 4, b"\x10\0\0\0")) + packed[at + 4 :]
    return packed


def _dicomdir(rng: random.Random) -> bytes:
    """A packaged DICOMDIR whose records point elsewhere."""
    data = (packaged_files() / "dicomdirtests" / "DICOMDIR").read_bytes()
    for element in reversed([e for e in elements(data) if e.tag == 0x00041500]):
        data = _replace(data, element, rng.choice(FILE_IDS))
    return data


# ---- DICOM as bytes

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element stands. Items and delimiters are elements, too; a sequence has no value."""

    tag: int
    vr: bytes
    """Empty where the syntax does not write it."""
    at: int
    value_at: int
    length: int
    """As it is written."""
    length_size: int
    end: int
    nested: bool
    in_pixels: bool
    """A fragment of compressed pixel data."""


def elements(data: bytes) -> list[Element]:
    """The elements of a little endian file, nested ones too, as far as they make sense; at most 5,000."""
    found: list[Element] = []
    at, syntax = 132 if data[128:132] == b"DICM" else 0, ""
    depth, in_pixels = 0, False
    while at + 8 <= len(data) and len(found) < 5000:
        element = _element(data, at, syntax, depth, in_pixels)
        if element is None:
            break
        found.append(element)
        if element.tag == 0x00020010:
            syntax = data[element.value_at : element.end].rstrip(b"\0 ").decode("latin-1")
        opens = element.length == UNDEFINED
        depth += opens - (element.tag in (ITEM_END, SEQUENCE_END))
        in_pixels = (in_pixels or (opens and element.tag == PIXEL_DATA)) and element.tag != SEQUENCE_END
        at = element.end
        if syntax in (DEFLATED, BIG_ENDIAN) and data[at : at + 2] != b"\x02\0":
            break
    return found


def _element(data: bytes, at: int, syntax: str, depth: int, in_pixels: bool) -> Element | None:
    group, number = struct.unpack_from("<HH", data, at)
    tag, vr, size, head = group << 16 | number, b"", 4, 8
    if group != 0xFFFE and (group == 2 or syntax != IMPLICIT):
        vr = data[at + 4 : at + 6]
        if vr not in LONG_VRS and vr not in SHORT_VRS:
            return None
        size, head = (4, 12) if vr in LONG_VRS else (2, 8)
    value_at = at + head
    length = int.from_bytes(data[value_at - size : value_at], "little")
    is_item = tag == ITEM and not in_pixels
    end = value_at if vr == b"SQ" or length == UNDEFINED or is_item else value_at + length
    if end > len(data):
        return None
    nested = depth > 0 or group == 0xFFFE
    return Element(tag, vr, at, value_at, length, size, end, nested, in_pixels and tag == ITEM)


def _choose(
    data: bytes, rng: random.Random, suits: Callable[[Element], bool] = lambda element: True
) -> Element | None:
    suitable = [element for element in elements(data) if suits(element)]
    return rng.choice(suitable) if suitable else None


def set_value(data: bytes, keyword: str, vr: bytes, value: bytes) -> bytes:
    """The element with another value, in place or put in where it belongs."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    for element in elements(data):
        if element.tag == tag and not element.nested:
            return _replace(data, element, value)
    explicit = _is_explicit(data) or tag < 0x00030000
    return _insert(data, tag, _header(tag, vr, len(value), explicit) + value)


def _replace(data: bytes, element: Element, value: bytes) -> bytes:
    shortened = value[: 2 ** (8 * element.length_size) - 2]
    changed = data[: element.value_at] + shortened + data[element.end :]
    return _with_length(changed, element, len(shortened))


def _insert(data: bytes, tag: int, encoded: bytes) -> bytes:
    found = elements(data)
    later = [e.at for e in found if e.tag > tag and not e.nested and e.tag >> 16 != 0xFFFE]
    at = later[0] if later else found[-1].end if found else len(data)
    return data[:at] + encoded + data[at:]


def _with_length(data: bytes, element: Element, length: int) -> bytes:
    size = element.length_size
    at = element.value_at - size
    return data[:at] + (length % 2 ** (8 * size)).to_bytes(size, "little") + data[at + size :]


def _header(tag: int, vr: bytes, length: int, explicit: bool) -> bytes:
    if not explicit:
        return _tag(tag) + _LENGTH.pack(length)
    if vr in LONG_VRS:
        return _tag(tag) + vr + bytes(2) + _LENGTH.pack(length)
    return _tag(tag) + vr + struct.pack("<H", min(length, 0xFFFF))


def _tag(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _even(uid: bytes) -> bytes:
    return uid + b"\0" * (len(uid) % 2)


def _is_explicit(data: bytes) -> bool:
    return any(e.vr for e in elements(data) if e.tag >> 16 > 2 and e.tag >> 16 != 0xFFFE)


def _body_at(data: bytes) -> int:
    """Where the file meta information ends."""
    meta = [e.end for e in elements(data) if e.tag >> 16 == 2]
    return meta[-1] if meta else 0


def _group_length(head: bytes) -> bytes:
    return set_value(head, "FileMetaInformationGroupLength", b"UL", _LENGTH.pack(max(0, len(head) - 144)))


def _zeros(start: bytes, size: int) -> bytes:
    """`start` and so many zeros, deflated: the same blocks again and again, so made at once."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    step = 2**20
    block = squeeze.compress(bytes(step)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // step) + squeeze.flush()


# ---- what is shown


def to_json(outcomes: Sequence[Outcome], sources: Sequence[Source], seed: int) -> str:
    """Without times of day and places on this machine."""
    facts: dict[str, Any] = {
        "seed": seed,
        "mutations": len(outcomes),
        "sources": [source.name for source in sources],
        "results": dict(sorted(Counter(o.result for o in outcomes).items())),
        "codes": dict(sorted(Counter(code for o in outcomes for code in o.codes).items())),
        "faults": [asdict(outcome) for outcome in outcomes if outcome.is_fault],
        "slowest": [asdict(outcome) for outcome in _top(outcomes, lambda o: o.seconds)],
        "hungriest": [asdict(outcome) for outcome in _top(outcomes, lambda o: o.peak_bytes)],
    }
    return json.dumps(facts, indent=1, ensure_ascii=True) + "\n"


def _top(outcomes: Iterable[Outcome], by: Callable[[Outcome], float]) -> list[Outcome]:
    return sorted(outcomes, key=by, reverse=True)[:5]


def show(outcomes: Sequence[Outcome], seconds: float, console: Console) -> None:
    results = Counter(outcome.result for outcome in outcomes)
    codes = Counter(code for outcome in outcomes for code in outcome.codes)
    table = Table("result or code", "mutants", box=None)
    for counts in (results, codes):
        for name, count in counts.most_common():
            table.add_row(name, f"{count}")
        table.add_section()
    console.print(table)
    for fault, first in _distinct_faults(outcomes).items():
        console.print(f"{fault}: {first[0]} times, first number {first[1].index}: {first[1].mutation}")
        console.print(f"  of {first[1].source}", style="dim")
    slowest = max(outcomes, key=lambda o: o.seconds)
    hungriest = max(outcomes, key=lambda o: o.peak_bytes)
    most_mib = hungriest.peak_bytes / 2**20
    console.print(
        f"{len(outcomes)} mutants in {seconds:.0f} s; slowest {slowest.seconds:.1f} s "
        f"(number {slowest.index}); most memory {most_mib:.0f} MiB (number {hungriest.index})."
    )


def _distinct_faults(outcomes: Iterable[Outcome]) -> dict[str, tuple[int, Outcome]]:
    """How often each fault was seen, and where first."""
    found: dict[str, tuple[int, Outcome]] = {}
    for outcome in outcomes:
        if outcome.is_fault:
            name = f"{outcome.result} {outcome.detail}"
            count, first = found.get(name, (0, outcome))
            found[name] = (count + 1, first)
    return found


# ---- from a shell


def main(arguments: Sequence[str] | None = None, read: Callable[[Path], Reading] = read_everything) -> int:
    """Exit code 1 if there was a fault, or an error that the caller can mend."""
    given = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        sources = find_sources(given.folders or [packaged_files()])
        if given.only is not None:
            return _replay(sources, given, read, console)
        began = time.monotonic()
        outcomes = _fuzz_with_progress(sources, given, read, console)
        if given.out is not None:
            write_text(given.out, to_json(outcomes, sources, given.seed))
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("INTERRUPTED: stopped; the same numbers give the same mutants.", file=sys.stderr)
        return 130
    show(outcomes, time.monotonic() - began, console)
    return int(any(outcome.is_fault for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.fuzz", description="Feed damaged DICOM files to the readers."
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="*", metavar="DIR", help="by default the test files in pydicom's wheel")
    add("--mutations", type=int, default=MUTATIONS)
    add("--seed", type=int, default=SEED)
    add("--workers", type=int, default=2)
    add("--timeout", type=float, default=LIMITS.wall_s, help="seconds after which a mutant is a HANG")
    add("--memory-gib", type=float, default=LIMITS.memory_bytes / 2**30, help="address space of a reader")
    add("--out", type=Path, metavar="FILE.json", help="counts, faults, the slowest and the hungriest")
    add("--keep", type=Path, metavar="DIR", help="save the mutants that were faults, each in a folder")
    add("--only", type=int, metavar="NUMBER", help="this mutant alone and unprotected: for a traceback")
    return parser


def _replay(
    sources: Sequence[Source], given: argparse.Namespace, read: Callable[[Path], Reading], console: Console
) -> int:
    mutant = make_mutant(sources, given.seed, given.only)
    console.print(f"{given.only}: {mutant.mutation}\n  of {mutant.source}")
    if given.keep is not None:
        _save(mutant, given.keep / f"{given.only}")
    with tempfile.TemporaryDirectory(prefix="mla-med-fuzz-") as folder:
        _save(mutant, Path(folder))
        console.print(read(Path(folder, mutant.entry)))
    return 0


def _fuzz_with_progress(
    sources: Sequence[Source], given: argparse.Namespace, read: Callable[[Path], Reading], console: Console
) -> tuple[Outcome, ...]:
    faults = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("mutants", total=given.mutations)

        def progress(outcome: Outcome) -> None:
            nonlocal faults
            faults += outcome.is_fault
            bar.update(task, advance=1, description=f"mutants, {faults} faults")

        limits = Limits(int(given.memory_gib * 2**30), cpu_s=given.timeout, wall_s=given.timeout)
        return fuzz(
            sources,
            given.mutations,
            given.seed,
            workers=given.workers,
            read=read,
            limits=limits,
            keep=given.keep,
            progress=progress,
        )


if __name__ == "__main__":
    # By its name, so that the readers' processes know its functions.
    from evaluation.fuzz import main as named_main

    sys.exit(named_main())
