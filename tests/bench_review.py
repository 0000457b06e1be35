"""Readers at once on a worklist of many drafts -> how long they wait. A command, not a test:

    python tests/bench_review.py [--readers 50] [--drafts 10000] [--seconds 20] [--think 2]

A real server in a process of its own on loopback. Every reader opens the worklist, filters, pages on and asks
every four seconds whether something is new, as the page does; between two pages `--think` seconds go by on
average. `--think 0`: as fast as they can, which no reader is. The bar: p95 under 300 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

SECRET = b"x" * 32
PAGES = (
    "/",
    "/?state=all",
    "/?rank=0",
    "/?examination=chest_ct",
    "/?q=mass",
    "/?q=scanner+7",
    "/?age=old&state=all",
    "/?state=decided",
)


def fill(url: str, drafts: int, readers: int) -> list[str]:
    """-> the cookies of the readers."""
    from mla_med.ledger.ledger import Ledger
    from mla_med.report.schema import SCHEMAS
    from mla_med.review.nouns import STATES
    from mla_med.review.store import Store
    from mla_med.review.tables import codes
    from mla_med.review.tables import drafts as table

    Ledger.open(url, SECRET).close()
    store = Store.open(url, SECRET)
    rng, now = random.Random(0), time.time()
    rows, stated = [], []
    for number in range(drafts):
        examination = rng.choice(("chest_ct", "brain_mr"))
        job_id, arrived = f"{rng.getrandbits(128):032x}", now - rng.random() * 7 * 86_400
        state = rng.choices(STATES, (5, 1, 2, 1, 1))[0]
        row = {"job_id": job_id, "state": state, "rank": rng.choices(range(4), (1, 4, 4, 1))[0]}
        row |= {"examination": examination, "language": "en", "scanner": f"Maker Scanner {number % 9}"}
        row |= {"subgroup": "F 60-79", "weights": "ab" * 32, "refusal": "", "arrived_at": arrived}
        row |= {"drafted_at": arrived + 60, "head": 0, "opened_at": 0.0, "opened_by": "", "decided_at": 0.0}
        rows.append(row | {"decided_by": "", "updated_at": arrived})
        for code in rng.sample(sorted(SCHEMAS[examination]), 4):
            stated.append({"job_id": job_id, "code": code, "presence": "present"})
    with store._engine.begin() as c:
        c.execute(table.insert(), rows)
        c.execute(codes.insert(), stated)
    cookies = [store.begin_session(f"r{n}", "Doe^Jane", "reader", "password", "en") for n in range(readers)]
    store.close()
    return cookies


class Reader:
    """One browser: a connection that is kept, and little of the time of this process."""

    def __init__(self, port: int, cookie: str, think_s: float, until_s: float, seed: int):
        self.port, self.cookie, self.think_s, self.until_s = port, cookie, think_s, until_s
        self.rng = random.Random(seed)
        self.waits: dict[str, list[float]] = {"page": [], "news": []}

    async def run(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.sleep(self.rng.random() * self.think_s)
        address, polled = "/", time.monotonic()
        while time.monotonic() < self.until_s:
            status, text = await self.ask(address, "page")
            assert status == 200, (status, address)
            later = re.search(r'rel="next" href="([^"]+)"', text)
            news = re.search(r'hx-get="([^"]+)"', text)
            address = self.rng.choice(PAGES)
            if later and self.rng.random() < 0.4:
                address = later[1].replace("&amp;", "&")
            end = time.monotonic() + self.rng.expovariate(1 / self.think_s) if self.think_s else 0.0
            while time.monotonic() < min(end, self.until_s):
                if news and time.monotonic() - polled > 4:
                    polled = time.monotonic()
                    await self.ask(news[1].replace("&amp;", "&"), "news", "HX-Request: true\r\n")
                await asyncio.sleep(min(0.25, max(0.0, end - time.monotonic())))
        self.writer.close()

    async def ask(self, address: str, kind: str, headers: str = "") -> tuple[int, str]:
        start = time.monotonic()
        self.writer.write(
            f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/html\r\n{headers}"
            f"Cookie: mla_med={self.cookie}\r\n\r\n".encode()
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length[1])) if length else b""
        self.waits[kind].append(time.monotonic() - start)
        return int(head.split()[1]), body.decode()


async def readers_of(port: int, cookies: list[str], think_s: float, seconds: float) -> list[Reader]:
    until = time.monotonic() + seconds
    readers = [Reader(port, cookie, think_s, until, n) for n, cookie in enumerate(cookies)]
    await asyncio.gather(*(reader.run() for reader in readers))
    return readers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--drafts", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--think", type=float, default=2.0)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        cookies = fill(url, asked.drafts, asked.readers)
        server, port = serve(Path(folder), url)
        try:
            asyncio.run(readers_of(port, cookies[:4], 0.1, 2))  # warm
            before = processor_s(server.pid)
            done = asyncio.run(readers_of(port, cookies, asked.think, asked.seconds))
            spent = processor_s(server.pid) - before
        finally:
            server.terminate()
            server.wait(20)
    for kind in ("page", "news"):
        waits = sorted(wait for reader in done for wait in reader.waits[kind])
        if waits:
            p95, p99 = (1000 * waits[int(share * (len(waits) - 1))] for share in (0.95, 0.99))
            print(
                f"{kind}: {len(waits)} of {asked.readers} readers, {asked.drafts} drafts: median "
                f"{1000 * median(waits):.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, "
                f"longest {1000 * waits[-1]:.0f} ms"
            )

    answers = sum(len(waits) for reader in done for waits in reader.waits.values())
    print(f"server: {1000 * spent / answers:.1f} ms of processor time an answer")


def processor_s(pid: int) -> float:
    """proc(5), fields 14 and 15 of stat: what other work on the machine does not change."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(folder: Path, url: str) -> tuple[subprocess.Popen, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "site.key").write_bytes(SECRET)
    (folder / "site.key").chmod(0o600)
    settings = folder / "mla-med.toml"
    settings.write_text(
        f'[pacs]\ndicomweb_url = "http://127.0.0.1:9/d"\nledger_url = "{url}"\n'
        f'key_file = "{folder}/site.key"\ninbox = "{folder}/inbox"\n'
        f'[night]\nout = "{folder}/drafts"\n[review]\nport = {port}\n'
    )
    code = (
        "import sys; from pathlib import Path; from mla_med.review.run import serve; serve(Path(sys.argv[1]))"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(settings)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        time.sleep(0.1)
    server.kill()
    raise SystemExit("The server did not start in two minutes.")


if __name__ == "__main__":
    main()
