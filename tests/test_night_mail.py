"""E-mail of a night: to a real SMTP server on loopback, by TLS or not, and nothing of a patient in it."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import socketserver
import ssl
import threading
from email import message_from_string, policy

import pytest

from mla_med.errors import ConfigError
from mla_med.night.mail import send_mail
from mla_med.night.settings import NightSettings, read_mail_password, read_night

MESSAGE = {
    "text": "mla_med, main: 1 studies need a person. 1 PARKED.",
    "jobs": [{"job": 32 * "a", "state": "PARKED", "reason": "HTTP_400"}],
}
PASSWORD = "open sesame"


class Mailbox(socketserver.ThreadingTCPServer):
    """RFC 5321 as far as a client of ours goes. `context`: it offers STARTTLS. `busy`: answers 451 to so many
    mails before it takes one."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None, at_once: bool = False, user: str = ""):
        super().__init__(("127.0.0.1", 0), _Talk)
        self.context, self.at_once, self.user = context, at_once, user
        self.busy, self.unknown = 0, frozenset[str]()
        self.mails: list[str] = []
        self.encrypted: list[bool] = []
        self.logins: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        pass  # a client that does not like our certificate hangs up

    def settings(self, **more) -> NightSettings:
        values = {"mail_host": "127.0.0.1", "mail_port": self.server_address[1], "mail_tls": "none"}
        people = {"mail_from": "mla_med@example.org", "mail_to": ("it@example.org", "pacs@example.org")}
        return NightSettings(**values | people | more)


class _Talk(socketserver.BaseRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        box, self.is_encrypted = self.server, False
        if box.at_once:
            self._encrypt()
        self.file = self.request.makefile("rb")
        self.say("220 here")
        while line := self.file.readline().decode().rstrip("\r\n"):
            verb = line.split(" ")[0].upper()
            if verb == "EHLO":
                offers = ["STARTTLS"] if box.context and not self.is_encrypted else []
                offers += ["AUTH PLAIN"] if box.user else []
                self.say("250-here", *(f"250-{offer}" for offer in offers), "250 HELP")
            elif verb == "STARTTLS":
                self.say("220 go")
                self._encrypt()
                self.file = self.request.makefile("rb")
            elif verb == "AUTH":
                box.logins.append(base64.b64decode(line.split(" ")[2]).decode())
                right = box.logins[-1] == f"\0{box.user}\0{PASSWORD}"
                self.say("235 come in" if right else "535 no")
            elif verb == "RCPT" and any(name in line for name in box.unknown):
                self.say("550 nobody of that name")
            elif verb == "DATA":
                self._take()
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 yes")

    def _take(self) -> None:
        self.say("354 go on")
        lines = []
        while (line := self.file.readline().decode()) != ".\r\n":
            lines.append(line)
        if self.server.busy:
            self.server.busy -= 1
            self.say("451 later")
            return
        self.server.mails.append("".join(lines))
        self.server.encrypted.append(self.is_encrypted)
        self.say("250 taken")

    def _encrypt(self) -> None:
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.is_encrypted = True

    def say(self, *lines: str) -> None:
        self.request.sendall("".join(f"{line}\r\n" for line in lines).encode())


@pytest.fixture
def mailbox():
    made = []

    def make(*args, **more) -> Mailbox:
        made.append(Mailbox(*args, **more))
        return made[-1]

    yield make
    for box in made:
        box.shutdown()
        box.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of 127.0.0.1, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "mail.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + private)
    return path


@pytest.fixture
def context(certificate):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    return made


def read(mail: str):
    return message_from_string(mail.replace("\r\n", "\n"), policy=policy.default)


def test_people_are_told_by_job_and_reason_alone(mailbox):
    box = mailbox()
    assert send_mail(box.settings(), MESSAGE)
    mail = read(box.mails[0])
    assert mail["Subject"] == "mla_med, main: 1 studies need a person. 1 PARKED."
    assert (mail["From"], mail["To"]) == ("mla_med@example.org", "it@example.org, pacs@example.org")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@example.org>")
    assert mail.get_content() == (
        "mla_med, main: 1 studies need a person. 1 PARKED.\n\n"
        f"{32 * 'a'} PARKED HTTP_400\n\n"
        "What happened to a study: mla-med ledger show JOB\nWhat waits for a person:  mla-med night held\n"
    )


def test_phantoms_that_are_read_otherwise_are_told_with_what_was(mailbox):
    box = mailbox()
    send_mail(box.settings(), {"text": "F1_FELL", "now": {"f1": 0.5}, "was": {"f1": 0.8}})
    assert "\nf1: 0.5, was 0.8\n" in read(box.mails[0]).get_content()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_password_goes_by_tls_alone_and_comes_from_a_file(
    mailbox, context, certificate, at_once, monkeypatch, tmp_path
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    box = mailbox(context, at_once, user="mla_med")
    secret = tmp_path / "mail.secret"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    own = {"mail_user": "mla_med", "mail_password_file": str(secret)}
    assert send_mail(box.settings(mail_tls="tls" if at_once else "starttls", **own), MESSAGE)
    assert (box.logins, box.encrypted) == ([f"\0mla_med\0{PASSWORD}"], [True])


def test_a_server_with_a_certificate_that_nobody_signed_is_told_nothing(mailbox, context):
    box = mailbox(context)
    assert not send_mail(box.settings(mail_tls="starttls"), MESSAGE, lambda s: None, tries=2)
    assert box.mails == []


def test_a_server_without_starttls_is_told_nothing(mailbox):
    box = mailbox()
    waits = []
    assert not send_mail(box.settings(mail_tls="starttls"), MESSAGE, waits.append)
    assert (box.mails, waits) == ([], [])


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(mailbox):
    box, waits = mailbox(), []
    box.busy = 2
    assert send_mail(box.settings(), MESSAGE, waits.append)
    assert waits == [1.0, 2.0]
    box.unknown = frozenset(("it@", "pacs@"))
    assert not send_mail(box.settings(), MESSAGE, waits.append)
    assert (len(box.mails), waits) == (1, [1.0, 2.0])
    box.unknown = frozenset(("it@",))  # one of two: the other is told
    assert send_mail(box.settings(), MESSAGE, waits.append)
    assert not send_mail(box.settings(mail_port=9), MESSAGE, waits.append, tries=2)
    assert len(box.mails) == 2


def test_a_wrong_password_is_said_once(mailbox, context, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("MLA_MED_MAIL_PASSWORD", "wrong")
    box, waits = mailbox(context, user="mla_med"), []
    assert not send_mail(box.settings(mail_tls="starttls", mail_user="mla_med"), MESSAGE, waits.append)
    assert (len(box.logins), waits, box.mails) == (1, [], [])


def test_a_password_that_smtp_cannot_carry_is_said_once_and_ends_nothing(
    mailbox, context, certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("MLA_MED_MAIL_PASSWORD", "geheime Straße")
    box, waits = mailbox(context, user="mla_med"), []
    assert not send_mail(box.settings(mail_tls="starttls", mail_user="mla_med"), MESSAGE, waits.append)
    assert (waits, box.mails) == ([], [])


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ('mail_tls = "maybe"', "CONFIG_INVALID", "there are starttls, tls, none"),
        ('mail_host = "mail.example.org"', "CONFIG_INVALID", "needs mail_from and mail_to"),
        ('mail_from = "a@b\\nBcc: c@d"', "CONFIG_INVALID", "is no e-mail address"),
        ('mail_user = "x"\nmail_tls = "none"', "CREDENTIALS_EXPOSED", "in the clear"),
    ],
)
def test_settings_of_mail_that_cannot_be_are_one_line(tmp_path, lines, code, words):
    path = tmp_path / "mla-med.toml"
    path.write_text(f"[night]\n{lines}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        read_night(path, {})
    assert caught.value.code == code


def test_a_password_that_others_may_read_or_that_is_nowhere_is_one_line(tmp_path):
    secret = tmp_path / "mail.secret"
    secret.write_text("x")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_mail_password(NightSettings(mail_user="x", mail_password_file=str(secret)), {})
    with pytest.raises(ConfigError, match="mail_user needs a password"):
        read_mail_password(NightSettings(mail_user="x"), {})
