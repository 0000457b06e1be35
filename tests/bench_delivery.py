"""How fast drafts go into a PACS, beside a bare storescu and a bare STOW loop that prove nothing.

    python tests/bench_delivery.py [DRAFTS]

Needs root, Orthanc and dcmtk, as the tests do. The bare loops send one draft after another and look
only at the answer's status; ours commits (fsync), sends, reads back, compares and records.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import drafts
import requests
from orthanc import loopback, orthanc

from mla_med.ledger.ledger import Ledger
from mla_med.pacs.deliver import commit_documents, deliver_due
from mla_med.pacs.settings import Credentials, PacsSettings
from mla_med.pacs.web import WebPeer


def main(number: int) -> None:
    print(f"making {number} drafts", flush=True)
    contents = [drafts.sr(n) for n in range(number)]
    with tempfile.TemporaryDirectory() as place, loopback(), orthanc() as server:
        folder = Path(place)
        (folder / "out").mkdir()
        for n, content in enumerate(contents):
            (folder / "out" / f"{n:06d}.dcm").write_bytes(content)
        rates = {}

        def timed(name: str, work) -> None:
            server.empty()
            start = time.monotonic()
            work()
            rates[name] = number / (time.monotonic() - start)
            assert len(server.get("/instances")) == number, name
            print(f"{name:28} {rates[name]:8.1f} drafts/s", flush=True)

        address = ["127.0.0.1", str(server.dicom_port)]
        timed(
            "storescu, one association",
            lambda: subprocess.run(
                ["storescu", "-aec", "ORTHANC", "+sd", *address, str(folder / "out")], check=True
            ),
        )
        timed("STOW loop, one at a time", lambda: stow_loop(server.dicomweb_url, contents))
        ledger = Ledger.open(f"sqlite:///{folder}/ledger.db", bytes(32))
        peer = WebPeer(PacsSettings(dicomweb_url=server.dicomweb_url), Credentials())
        start = time.monotonic()
        for content in contents:
            commit_documents(ledger, [content], "pacs", validate="off")
        print(
            f"{'committed to the outbox':28} {number / (time.monotonic() - start):8.1f} drafts/s", flush=True
        )
        timed("delivered and read back", lambda: deliver_due(ledger, peer, "pacs"))
        assert ledger.job_counts() == {"DELIVERED": number}
        best = max(rates["storescu, one association"], rates["STOW loop, one at a time"])
        print(f"delivered at {rates['delivered and read back'] / best:.0%} of the faster bare loop")


def stow_loop(url: str, contents: list[bytes]) -> None:
    session = requests.Session()
    kind = 'multipart/related; type="application/dicom"; boundary=bare'
    for content in contents:
        body = b"--bare\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--bare--"
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        session.post(f"{url}/studies", data=body, headers=headers, timeout=30).raise_for_status()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
