"""What several test files need: the packaged model, phantoms, real series, a folder on a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads that wait for each other cost more

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def checkpoint():
    """The model that ships with the package."""
    from mla_med.model.checkpoint import load_checkpoint

    return load_checkpoint()


@pytest.fixture(scope="session")
def phantom_study(tmp_path_factory):
    """phantom_study("lung_mass", ...) -> the folder of a chest CT study of `phantoms.patient` with these
    findings, as a scanner sends it: localizer, axial series, dose picture. Made once; not to be changed."""
    from phantoms import patient, write_study

    @cache
    def make(*codes: str) -> Path:
        return write_study(patient(*codes), tmp_path_factory.mktemp("phantom"))

    return make


@pytest.fixture(scope="session")
def phantom_series(phantom_study) -> Path:
    """The axial series of a phantom with a mass, an effusion and a large heart, slices 3 mm apart."""
    from phantoms import volume_series

    return volume_series(phantom_study("lung_mass", "pleural_effusion", "cardiomegaly"))


@pytest.fixture(scope="session")
def brain_patient():
    """With an acute infarct and a mass that takes up contrast medium."""
    from phantoms import patient

    return patient("acute_infarct", "brain_mass", "abnormal_enhancement", examination="brain_mr")


@pytest.fixture(scope="session")
def brain_study(brain_patient, tmp_path_factory) -> Path:
    """Every sequence of their brain MR, in thick slices: a folder a series."""
    from phantoms import write_study

    return write_study(brain_patient, tmp_path_factory.mktemp("brain"))


@pytest.fixture(scope="session")
def packaged_head() -> Path:
    """Four slices of a real head CT in pydicom's wheel, with a hole of 202.5 mm."""
    from pydicom.data import get_testdata_file

    return Path(str(get_testdata_file("dicomdirtests/77654033/CT2/17106"))).parent


@pytest.fixture
def real_series():
    """real_series("ct_head_philips_study") -> its folder; skips where the data is not there."""

    def find(name: str) -> Path:
        folder = SHARED / "dicom" / name
        if not folder.is_dir():
            pytest.skip(f"development data is not here: {name}")
        return folder

    return find


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def sr_errors(path: Path) -> list[str]:
    """The errors that dciodvfy prints of a file."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy said nothing"
    return [line for line in lines if line.startswith("Error")]


@pytest.fixture(scope="module")
def network():
    """A loopback of this thread's own for the whole file; skips where that or Orthanc is not to be had."""
    from ledgers import stop_postgres
    from orthanc import loopback, require

    require()
    with loopback():
        yield
    stop_postgres()


@pytest.fixture(scope="module")
def running(network):
    """A real Orthanc with DICOMweb."""
    from orthanc import orthanc

    with orthanc() as server:
        yield server


@pytest.fixture
def server(running):
    """The same, empty."""
    running.empty()
    return running


@pytest.fixture
def settings_file(server, tmp_path):
    """Of a night beside the PACS."""
    from night_site import write_settings

    return write_settings(tmp_path, server.dicomweb_url)


@pytest.fixture
def seed_and_one_thread():
    """One thread: on shared cores, threads of so small a model wait for each other most of the time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
