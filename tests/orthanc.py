"""A real Orthanc with DICOMweb for tests, on the loopback of a network namespace of its own.

Debian's Orthanc binds 0.0.0.0 whatever it is told, so it must not run where a network is. The test's
thread steps into a new namespace and back; what it starts meanwhile, threads and processes, is there
too. Needs root, Debian's orthanc and orthanc-dicomweb.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def loopback() -> Iterator[None]:
    """A network of this thread's own, with 127.0.0.1 and nothing else."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace here: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, capture_output=True)
            yield
        finally:
            assert _libc.setns(before, _CLONE_NEWNET) == 0
    finally:
        os.close(before)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Orthanc:
    """Started and stopped; asked by its REST API, which the code under test does not use. `user`: name and
    password that it asks for."""

    def __init__(self, folder: Path, user: tuple[str, str] | None = None, **options: Any):
        self.folder = folder
        self._headers = {}
        if user:
            self._headers["Authorization"] = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
            options |= {"AuthenticationEnabled": True, "RegisteredUsers": dict([user])}
        self.http_port, self.dicom_port = free_port(), free_port()
        self.options = options
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        return f"{self.url}/dicom-web"

    def start(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "Name": "tests",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "index"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [p for p in _PLUGINS if os.path.isdir(p)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "OverwriteInstances": False,
            "HttpThreadsCount": 20,
            "StorageCommitmentReportsSize": 100,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowFind": True,
            "DicomModalities": {},
            **self.options,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        program = shutil.which("Orthanc")
        assert program, "call require() first"
        self.process = subprocess.Popen(
            [program, str(path)],
            stdout=(self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            try:
                self.get("/system")
                return self
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        raise RuntimeError("Orthanc did not start in 30 s")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.process = None

    def get(self, place: str) -> Any:
        with self._open(place) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers.get_content_type() == "application/json" else body

    def files(self) -> list[bytes]:
        return [self.get(f"/instances/{key}/file") for key in self.get("/instances")]

    def upload(self, content: bytes) -> None:
        self._open("/instances", "POST", content).read()

    def empty(self) -> None:
        for key in self.get("/patients"):
            self._open(f"/patients/{key}", "DELETE").read()

    def _open(self, place: str, method: str = "GET", content: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + place, content, self._headers, method=method)
        return urllib.request.urlopen(request, timeout=60)


def require() -> None:
    """Skips, with the reason, where it cannot run."""
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("Orthanc binds every address: it needs a network namespace, so root and iproute2")


@contextmanager
def orthanc(**options: Any) -> Iterator[Orthanc]:
    """One of its own, in the namespace that this thread is in."""
    folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
    server = Orthanc(folder, **options)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
