"""Draft SRs of made-up studies, for tests of the ledger and of delivery."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from mla_med.documents.sr import draft_to_sr
from mla_med.types import (
    Certificate,
    Draft,
    Evidence,
    Finding,
    Gate,
    Instance,
    Presence,
    Provenance,
    Report,
    Sentence,
    Series,
    SeriesVerdict,
    Side,
)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def study_uid(number: int) -> str:
    return f"2.25.7000{number}"


def draft(number: int, text: str) -> Draft:
    """A chest CT of four slices with one nodule, in this sentence."""
    uid = study_uid(number)
    instances = tuple(Instance(f"{uid}.1.{k}", CT_IMAGE, Path("x.dcm")) for k in range(1, 5))
    series = Series(f"{uid}.1", "CT", "Thorax", "CHEST", ("ORIGINAL", "PRIMARY", "AXIAL"), instances)
    evidence = Evidence((instances[1].sop_instance_uid,), ((0.0, 0.0, 0.0), (9.0, 9.0, 9.0)))
    finding = Finding("lung_nodule", Presence.PRESENT, "upper_lobe", Side.RIGHT, 3.0, evidence=evidence)
    words = (Sentence(text, ("lung_nodule",)),)
    return Draft(
        report=Report((finding,), words, words, "CT of the chest."),
        gate=Gate(True),
        verdicts=(SeriesVerdict(series, _certificate(), None, chosen=True),),
        modal_weights={},
        provenance=Provenance(
            "mla", "0.1", "ab" * 32, uid, (series.series_uid,), "2026-11-05T09:30:12+00:00"
        ),
    )


def _certificate() -> Certificate:
    identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Certificate((8, 8, 4), (1.0, 1.0, 1.0), identity, "axial", 0.0, 0.0, 0, "slope 1", "1.2", False)


def sr_dataset(number: int, text: str, **patient: str) -> Dataset:
    return sr_of(draft(number, text), number, **patient)


def sr_of(made: Draft, number: int, **patient: str) -> Dataset:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "image.dcm"
        header = image(number)
        for keyword, value in patient.items():
            setattr(header, keyword, value)
        header.save_as(source, enforce_file_format=True)
        return draft_to_sr(made, source)


def sr(number: int, text: str = "Nodule of ≥ 3 mm.", **patient: str) -> bytes:
    return to_bytes(sr_dataset(number, text, **patient))


def to_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@functools.cache
def _template() -> Dataset:
    return dcmread(get_testdata_file("CT_small.dcm"))


def image(number: int, slice_number: int = 1, slices: int = 4) -> Dataset:
    """A real CT header with 128 x 128 pixels, as slice `slice_number` of a made-up study."""
    from copy import deepcopy

    dataset = deepcopy(_template())
    uid = study_uid(number)
    dataset.StudyInstanceUID = uid
    dataset.SeriesInstanceUID = f"{uid}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.{slice_number}"
    dataset.InstanceNumber = slice_number
    dataset.ImagePositionPatient = [-158.1, -179.0, -75.7 + 5.0 * slice_number]
    dataset.SliceLocation = -75.7 + 5.0 * slice_number
    dataset.PatientID = f"P{number}"
    dataset.PatientName = f"Phantom^{number}"
    dataset.StudyDate = dataset.SeriesDate = "20261101"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


__all__ = ["draft", "image", "replace", "sr", "sr_dataset", "sr_of", "study_uid", "to_bytes"]
