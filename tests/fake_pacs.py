"""PACS that fail as real ones do: an HTTP server with scripted answers, an SCP with scripted statuses,
a port that accepts and says nothing, or a byte now and then, a proxy that loses answers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

Answer = tuple[int, bytes] | None
"""Status and body; None: the connection is closed without a word."""


@contextmanager
def http_pacs(
    answer: Callable[[str, str, bytes], Answer], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Its DICOMweb address. `answer`: of method, path and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            found = answer(self.command, self.path, self.rfile.read(length))
            if found is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, body = found
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def stow(referenced: list[str] = (), failed: dict[str, int] | None = None) -> bytes:  # type: ignore[assignment]
    """The body of a STOW answer."""
    item = lambda uid: {"00081155": {"vr": "UI", "Value": [uid]}}  # noqa: E731
    answer = {}
    if referenced:
        answer["00081199"] = {"vr": "SQ", "Value": [item(uid) for uid in referenced]}
    if failed:
        reasons = [item(u) | {"00081197": {"vr": "US", "Value": [reason]}} for u, reason in failed.items()]
        answer["00081198"] = {"vr": "SQ", "Value": reasons}
    return json.dumps(answer).encode()


@contextmanager
def losing_proxy(url: str, lose: Callable[[str], bool]) -> Iterator[str]:
    """Hands everything on to a PACS, and loses the answers that `lose` (of the method) says."""
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)/dicom-web", url).groups()  # type: ignore[union-attr]

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            own = ("host", "connection", "accept-encoding")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
            connection.request(self.command, "/dicom-web" + self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if lose(self.command):
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def tls_front(port: int, tls: ssl.SSLContext) -> Iterator[str]:
    """An address that speaks HTTPS and hands on to a port of this machine, as a reverse proxy does.

    Debian's Orthanc 1.10.1 cannot do it itself: its libcivetweb 1.15 looks for a function that OpenSSL 3 no
    longer has (civetweb#1334), and the first HTTPS connection ends the process."""
    listener = socket.create_server(("127.0.0.1", 0))

    def hand_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(raw: socket.socket) -> None:
        try:
            raw.settimeout(10)
            theirs = tls.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()
            return
        ours = socket.create_connection(("127.0.0.1", port), 10)
        threading.Thread(target=hand_on, args=(ours, theirs), daemon=True).start()
        hand_on(theirs, ours)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def dimse_pacs(status: int | str) -> Iterator[int]:
    """Its port. `status`: of every C-STORE, or "abort", or "slow"."""

    def on_store(event):
        if status == "abort":
            event.assoc.abort()
            return 0x0000
        if status == "slow":
            time.sleep(3)
            return 0x0000
        if status == "empty":
            return Dataset()
        return status

    ae = AE(ae_title="FAKE")
    if status != "other class":
        ae.add_supported_context(BasicTextSRStorage)
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def silent_port() -> Iterator[int]:
    """Accepts, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for one in kept:
            one.close()


@contextmanager
def dripping_port(kind: str = "application/dicom") -> Iterator[int]:
    """Answers 200 with a body of this content type, a space every tenth of a second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip(one: socket.socket) -> None:
            with one, suppress(OSError):
                one.recv(2**20)
                one.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n".encode())
                one.sendall(b"Content-Length: 100000\r\n\r\n")
                while True:
                    one.sendall(b" ")
                    time.sleep(0.1)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def committing_pacs(commits: Callable[[str], bool], reports: bool = True) -> Iterator[int]:
    """Its port. Answers storage commitment on the association that asked."""

    def on_action(event):
        asked = event.action_information
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = [
            i for i in asked.ReferencedSOPSequence if commits(i.ReferencedSOPInstanceUID)
        ]
        failed = [i for i in asked.ReferencedSOPSequence if not commits(i.ReferencedSOPInstanceUID)]
        for item in failed:
            item.FailureReason = 0x0112
        if failed:
            report.FailedSOPSequence = failed
        kind = 2 if failed else 1
        where = (StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        if reports:
            threading.Timer(0.1, lambda: event.assoc.send_n_event_report(report, kind, *where)).start()
        return 0x0000, None

    ae = AE(ae_title="FAKE")
    ae.add_supported_context(StorageCommitmentPushModel)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, on_action)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def reports_to(title: str) -> Iterator[tuple[int, list[Dataset]]]:
    """A port where reports of storage commitment arrive, and those that did."""
    arrived: list[Dataset] = []

    def on_report(event):
        arrived.append(event.event_information)
        return 0x0000, None

    ae = AE(ae_title=title)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)]
    )
    try:
        yield server.server_address[1], arrived
    finally:
        server.shutdown()
