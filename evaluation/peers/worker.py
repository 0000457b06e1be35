"""One reader, one folder -> result.json and one .npy per volume: what was read, how fast, in how much memory.

`python -m evaluation.peers.worker READER FOLDER OUT [WARM_UP]`, in a process of its own, so that
neither imports nor memory of one reader reach another. Imports, and a first reading of the tiny series in
WARM_UP that loads what a library loads late, are over before the clock starts; the volumes are
saved after it stopped. An error of a library that is not a refusal ends the process, and its last
line of stderr says so. Knows nothing of references, other readers or tables.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# numpy is not imported here: what dcm2niix takes is measured from a process that is still small.
if TYPE_CHECKING:
    import numpy as np

# What the libraries raise on data they do not take; dicom2nifti's own class joins when it is loaded.
REFUSALS: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NotImplementedError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Found:
    """A volume in memory as float32, voxel axes in any order; affine (4, 4) to patient RAS mm."""

    voxels: np.ndarray
    affine: np.ndarray
    series_uid: str = ""
    label: str = ""
    """What the reader calls this one of several volumes of a series."""
    notes: tuple[str, ...] = ()
    owner: object = None
    """Whatever holds the memory that the voxels are a view of."""


@dataclass(frozen=True, slots=True)
class Refused:
    words: str
    code: str = ""
    series_uid: str = ""


@dataclass(slots=True)
class Reading:
    found: list[Found] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    said: str = ""
    """What a separate program printed."""
    child_peak_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Library:
    """A reader, the modules it needs, and the package whose version names it."""

    read: Callable[[Path], Reading]
    modules: tuple[str, ...]
    package: str


def main(arguments: list[str]) -> int:
    name, folder, out = arguments[0], Path(arguments[1]), Path(arguments[2])
    warm_up = Path(arguments[3]) if len(arguments) > 3 else None
    out.mkdir(parents=True, exist_ok=True)
    result = measure(READERS[name], folder, out, warm_up)
    (out / "result.json").write_text(json.dumps(result))
    return 0


def measure(library: Library, folder: Path, out: Path, warm_up: Path | None = None) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        for module in library.modules:
            import_module(module)
    except ModuleNotFoundError as error:
        return {"missing": error.name or library.package}
    usual: set[str] = set()
    if warm_up is not None:
        with contextlib.suppress(*REFUSALS), _quiet() as said_anyway:
            library.read(warm_up)
        usual = {str(w.message) for w in said_anyway}
    gc.collect()
    start_s = time.perf_counter() - began
    if library.read is read_dcm2niix and _dcm2niix() is None:
        return {"missing": "dcm2niix"}
    before_mib = _reset_peak_mib()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wall, cpu = time.perf_counter(), _cpu_s()
        reading = library.read(folder)
        wall_s, cpu_s = time.perf_counter() - wall, _cpu_s() - cpu
    own_peak_mib = _memory_mib("VmHWM")
    return {
        "version": _version(library.package),
        "start_s": start_s,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_mib": max(own_peak_mib, reading.child_peak_mib),
        "above_start_mib": max(own_peak_mib - before_mib, reading.child_peak_mib),
        "volumes": [_save(found, k, out) for k, found in enumerate(reading.found)],
        "refused": [{"words": r.words, "code": r.code, "series_uid": r.series_uid} for r in reading.refused],
        "warnings": [
            *(str(w.message) for w in caught if _concerns_data(w) and str(w.message) not in usual),
            *_warnings_in(reading.said),
        ],
    }


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """What is said of the warm-up says nothing of the data, also if a C library says it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "wb") as nowhere, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield caught
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)


def _cpu_s() -> float:
    """User and system time of this process, all its threads, and the children it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _reset_peak_mib() -> float:
    """Forget the peak of the imports; returns what is held now."""
    # Linux: 5 resets the peak of the process (proc_pid_clear_refs(5)).
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory_mib("VmRSS")


def _memory_mib(which: str, pid: int | str = "self") -> float:
    """VmHWM, the peak, or VmRSS, now; 0 where nobody tells."""
    # Not ru_maxrss: Linux hands a process the peak of the one that started it, through fork and exec.
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(which + ":")), 0.0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _save(found: Found, number: int, out: Path) -> dict[str, Any]:
    import numpy as np

    path = out / f"{number}.npy"
    np.save(path, found.voxels)
    return {
        "file": path.name,
        "affine": np.asarray(found.affine, dtype=float).tolist(),
        "series_uid": found.series_uid,
        "label": found.label,
        "notes": found.notes,
    }


def _concerns_data(warning: warnings.WarningMessage) -> bool:
    return not issubclass(warning.category, DeprecationWarning | FutureWarning | ImportWarning)


def _warnings_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.lower().startswith(("warning", "error"))]


def read_ours(folder: Path) -> Reading:
    from mla_med.dicom.study import read_study
    from mla_med.dicom.volume import read_volume
    from mla_med.errors import MlaMedError

    reading = Reading()
    try:
        study = read_study(folder)
    except MlaMedError as error:
        reading.refused.append(Refused(str(error), error.code))
        return reading
    for series in study.series:
        try:
            volume = read_volume(series)
        except MlaMedError as error:
            reading.refused.append(Refused(str(error), error.code, series.series_uid))
        else:
            notes = volume.certificate.notes
            reading.found.append(Found(volume.voxels, volume.affine, series.series_uid, series.part, notes))
    return reading


def read_dcm2niix(folder: Path) -> Reading:
    """Converts to NIfTI in a temporary folder, then reads that."""
    program = _dcm2niix()
    assert program is not None
    reading = Reading()
    with tempfile.TemporaryDirectory() as made:
        command = [program, "-z", "n", "-b", "n", "-f", "%j", "-o", made, str(folder)]
        reading.said, reading.child_peak_mib = _run(command, Path(made) / "said.txt")
        for path in sorted(Path(made).glob("*.nii")):
            uid, label = _uid_and_label(path.stem)
            reading.found.extend(_from_nifti(path, uid, label))
    if not reading.found:
        lines = [line for line in reading.said.splitlines() if line.strip()]
        words = [*_warnings_in(reading.said), *lines[-2:-1]]
        reading.refused.append(Refused(words[0] if words else "wrote no NIfTI file"))
    return reading


def _dcm2niix() -> str | None:
    """The program itself: PyPI's, else the one on the PATH."""
    with contextlib.suppress(ModuleNotFoundError):
        return str(import_module("dcm2niix").bin)
    return shutil.which("dcm2niix")


def _run(command: list[str], log: Path) -> tuple[str, float]:
    """What it printed, and the peak of its memory in MiB."""
    peak_mib = 0.0
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak_mib = max(peak_mib, _memory_mib("VmHWM", process.pid))
            time.sleep(POLL_S)
    return log.read_text(errors="replace"), peak_mib


def _uid_and_label(stem: str) -> tuple[str, str]:
    """`%j` writes the UID; dcm2niix adds a letter, or _Eq, _Tilt, _e2, _ph, for further volumes."""
    digits = len(stem) - len(stem.lstrip("0123456789."))
    return stem[:digits].rstrip("."), stem[digits:].lstrip("_")


def _from_nifti(path: Path, uid: str, label: str) -> list[Found]:
    import nibabel

    image: Any = nibabel.load(path)
    return [Found(_nifti_voxels(image), image.affine, uid, label)]


def _nifti_voxels(image: Any) -> np.ndarray:
    """As float32; colour, which NIfTI keeps as a record of bytes, on a last axis."""
    import numpy as np

    names = image.get_data_dtype().names
    if not names:
        return np.asarray(image.get_fdata(dtype=np.float32))
    stored = np.asanyarray(image.dataobj)
    return np.stack([stored[name] for name in names], axis=-1).astype(np.float32)


def read_simpleitk(folder: Path) -> Reading:
    import numpy as np

    sitk: Any = import_module("SimpleITK")
    reading = Reading()
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        try:
            reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
        except REFUSALS as error:
            reading.refused.append(Refused(_words(error), series_uid=uid))
            continue
        voxels = np.asarray(sitk.GetArrayViewFromImage(image)).T
        reading.found.append(Found(voxels, _itk_affine(image), uid, owner=image))
    if not (reading.found or reading.refused):
        reading.refused.append(Refused("found no series"))
    return reading


def _itk_affine(image: Any) -> np.ndarray:
    """Of the first three dimensions; ITK's patient axes are LPS."""
    import numpy as np

    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_monai_itk(folder: Path) -> Reading:
    return _read_monai(folder, "ITKReader")


def read_monai_pydicom(folder: Path) -> Reading:
    return _read_monai(folder, "PydicomReader")


def _read_monai(folder: Path, reader: str) -> Reading:
    import numpy as np

    transforms: Any = import_module("monai.transforms")
    try:
        image = transforms.LoadImage(reader=reader, image_only=True)(str(folder))
    except REFUSALS as error:
        return Reading(refused=[Refused(_words(error))])
    return Reading(found=[Found(np.asarray(image), np.asarray(image.affine, dtype=float))])


def read_dicom2nifti(folder: Path) -> Reading:
    """As its convert_directory does, one series after the other, but without the file."""
    convert: Any = import_module("dicom2nifti.convert_dicom")
    errors: Any = import_module("dicom2nifti.exceptions")
    refusals = (*REFUSALS, errors.ConversionError, errors.ConversionValidationError)
    reading = Reading()
    for uid, datasets in _by_series(folder).items():
        try:
            image = convert.dicom_array_to_nifti(datasets, None, reorient_nifti=False)["NII"]
            reading.found.append(Found(_nifti_voxels(image), image.affine, uid))
        except refusals as error:
            reading.refused.append(Refused(_words(error), series_uid=uid))
    return reading


def _by_series(folder: Path) -> dict[str, list[Any]]:
    import pydicom

    groups: dict[str, list[Any]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with contextlib.suppress(pydicom.errors.InvalidDicomError):
            dataset = pydicom.dcmread(path)
            groups.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(dataset)
    return groups


def read_highdicom(folder: Path) -> Reading:
    reading = Reading()
    for uid, datasets in _by_series(folder).items():
        if not uid:
            continue  # a DICOMDIR
        multi = [dataset for dataset in datasets if "PerFrameFunctionalGroupsSequence" in dataset]
        single = [dataset for dataset in datasets if "PerFrameFunctionalGroupsSequence" not in dataset]
        for group in [*([single] if single else []), *([dataset] for dataset in multi)]:
            try:
                reading.found.append(_highdicom_volume(group, uid))
            except REFUSALS as error:
                reading.refused.append(Refused(_words(error), series_uid=uid))
    return reading


def _highdicom_volume(datasets: list[Any], uid: str) -> Found:
    import numpy as np

    highdicom: Any = import_module("highdicom")
    if "PerFrameFunctionalGroupsSequence" in datasets[0]:
        image = highdicom.Image.from_dataset(datasets[0], copy=False)
        volume = image.get_volume(dtype=np.float32)
    else:
        volume = highdicom.get_volume_from_series(datasets, dtype=np.float32)
    return Found(volume.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine, uid)


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".rstrip(": ")


READERS: Mapping[str, Library] = {
    "ours": Library(read_ours, ("mla_med.dicom.study", "mla_med.dicom.volume"), "mla_med"),
    "dcm2niix": Library(read_dcm2niix, (), "dcm2niix"),
    "SimpleITK": Library(read_simpleitk, ("SimpleITK",), "SimpleITK"),
    "MONAI ITKReader": Library(read_monai_itk, ("monai.transforms", "itk"), "monai"),
    "MONAI PydicomReader": Library(read_monai_pydicom, ("monai.transforms", "pydicom"), "monai"),
    "dicom2nifti": Library(read_dicom2nifti, ("dicom2nifti", "dicom2nifti.convert_dicom"), "dicom2nifti"),
    "highdicom": Library(read_highdicom, ("highdicom",), "highdicom"),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
