"""How fast drafts go into a PACS, beside a bare storescu and a bare STOW loop that prove nothing.

    python tests/bench_delivery.py [--drafts N] [--batch N] [--workers N]

Needs root, Orthanc and dcmtk, as the tests do. The bare loops send one draft after another and look
only at the answer's status; ours leases, sends, reads back, compares and records, on a ledger that is
synced to the disk at every transaction. Committing to the outbox is timed apart: it happens when a study is
drafted.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import drafts
import requests
from orthanc import Orthanc, loopback, orthanc

from mla_med.ledger.ledger import Ledger
from mla_med.pacs.deliver import commit_documents, deliver_due
from mla_med.pacs.run import make_peer
from mla_med.pacs.settings import Credentials, PacsSettings

ENOUGH = 0.8
"""Of the faster bare loop."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/bench_delivery.py", description=__doc__)
    parser.add_argument("--drafts", type=int, default=1000, metavar="N")
    parser.add_argument("--batch", type=int, default=PacsSettings(dicomweb_url="http://x").batch, metavar="N")
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    asked = parser.parse_args()
    print(f"making {asked.drafts} drafts", flush=True)
    contents = [drafts.sr(n) for n in range(asked.drafts)]
    with tempfile.TemporaryDirectory() as place, loopback(), orthanc() as server:
        rates = measure(contents, Path(place), server, asked.batch, asked.workers)
    bare = max(rate for name, rate in rates.items() if name.startswith("bare"))
    print(f"\n{'':44} drafts/s  of the faster bare loop")
    for name, rate in rates.items():
        print(f"{name:44} {rate:8.1f}  {rate / bare:7.0%}")
    ours = max(rate for name, rate in rates.items() if name.startswith("ours, "))
    print(f"\n{asked.drafts} drafts, batches of {asked.batch}, {asked.workers} workers; wanted {ENOUGH:.0%}")
    return 0 if ours >= ENOUGH * bare else 1


def measure(
    contents: Sequence[bytes], folder: Path, server: Orthanc, batch: int, workers: int
) -> dict[str, float]:
    """Drafts per second, by what sent them."""
    (folder / "out").mkdir()
    for n, content in enumerate(contents):
        (folder / "out" / f"{n:06d}.dcm").write_bytes(content)
    address = ["127.0.0.1", str(server.dicom_port)]
    scu = ["storescu", "-aec", "ORTHANC", "+sd", *address, str(folder / "out")]
    rates: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], stored: bool = True) -> None:
        server.empty()
        start = time.monotonic()
        work()
        rates[name] = len(contents) / (time.monotonic() - start)
        assert len(server.get("/instances")) == (len(contents) if stored else 0), name
        print(f"{name}: {rates[name]:.1f} drafts/s", flush=True)

    timed("bare storescu, one association", lambda: subprocess.run(scu, check=True))
    timed("bare STOW loop, one after another", lambda: stow_loop(server.dicomweb_url, contents))
    ways = {
        "DICOMweb": PacsSettings(dicomweb_url=server.dicomweb_url),
        "DIMSE": PacsSettings(
            protocol="dimse", host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC"
        ),
    }
    for way, settings in ways.items():
        ledger = Ledger.open(f"sqlite:///{folder}/{way}.db", bytes(32))
        peer = make_peer(settings, Credentials())

        def commit(ledger: Ledger = ledger) -> None:
            for content in contents:
                commit_documents(ledger, [content], "pacs", validate="off")

        if way == "DICOMweb":
            timed("committed to the outbox, synced", commit, stored=False)
        else:
            commit()
        timed(
            f"ours, {way}: stored, read back, compared",
            lambda ledger=ledger, peer=peer: deliver_due(ledger, peer, "pacs", batch=batch, workers=workers),
        )
        assert ledger.job_counts() == {"DELIVERED": len(contents)}
        ledger.close()
    return rates


def stow_loop(url: str, contents: list[bytes]) -> None:
    session = requests.Session()
    kind = 'multipart/related; type="application/dicom"; boundary=bare'
    for content in contents:
        body = b"--bare\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--bare--"
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        session.post(f"{url}/studies", data=body, headers=headers, timeout=30).raise_for_status()


if __name__ == "__main__":
    raise SystemExit(main())
