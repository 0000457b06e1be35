"""What needs a person -> an e-mail by the site's SMTP server, tried again until it is taken.

Counts, states, codes and job ids, as the webhook has them; whoever reads a mailbox reads nothing of a
patient. Encrypted by STARTTLS (RFC 3207) or from the first byte (RFC 8314), with certificates checked; a
server that offers no encryption gets nothing unless the settings say so, and never a password. Marked as
written by a machine, so that no absence notice answers it (RFC 3834).
"""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from mla_med.logs import log
from mla_med.night.settings import NightSettings, read_mail_password

TRIES = 5
FIRST_WAIT_S = 1.0
TIMEOUT_S = 20.0


def send_mail(
    night: NightSettings,
    message: Mapping[str, Any],
    sleep: Callable[[float], None] = time.sleep,
    tries: int = TRIES,
) -> bool:
    """False where the server did not take it; that is logged, and ends nothing. ConfigError where the
    password cannot be read."""
    password, mail = read_mail_password(night), write_mail(night, message)
    for attempt in range(1, tries + 1):
        try:
            refused = _send(night, mail, password)
        except smtplib.SMTPNotSupportedError:
            code, is_final = "NOT_OFFERED", True  # STARTTLS, or a password
        except smtplib.SMTPRecipientsRefused as error:
            answers = [answer for answer, _ in error.recipients.values()]
            code, is_final = f"SMTP_{min(answers)}", min(answers) >= 500
        except smtplib.SMTPResponseException as error:
            code, is_final = f"SMTP_{error.smtp_code}", error.smtp_code >= 500
        except UnicodeError:  # user, password or address beyond ASCII; the error holds it
            code, is_final = "NOT_ASCII", True
        except (smtplib.SMTPException, OSError) as error:
            code, is_final = type(error).__name__, False
        else:
            log("mail_sent", attempt=attempt)
            if refused:
                log("mail_refused", level="error", count=refused, code="RECIPIENT")
            return True
        if is_final:
            break  # it would say so again
        if attempt < tries:
            sleep(FIRST_WAIT_S * 2.0 ** (attempt - 1))
    log("mail_failed", level="error", code=code, attempt=attempt)
    return False


def _send(night: NightSettings, mail: EmailMessage, password: str) -> int:
    """-> of how many recipients the server wants to know nothing, while it took others."""
    context = ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(night.mail_host, night.mail_port, timeout=TIMEOUT_S, context=context)
        if night.mail_tls == "tls"
        else smtplib.SMTP(night.mail_host, night.mail_port, timeout=TIMEOUT_S)
    ) as server:
        if night.mail_tls == "starttls":
            server.starttls(context=context)
        if night.mail_user:
            server.login(night.mail_user, password)
        return len(server.send_message(mail))


def write_mail(night: NightSettings, message: Mapping[str, Any]) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = " ".join(message["text"].split())[:200]
    mail["From"] = night.mail_from
    mail["To"] = ", ".join(night.mail_to)
    mail["Date"] = formatdate(localtime=False)
    # its default names this machine
    mail["Message-ID"] = make_msgid(domain=night.mail_from.rpartition("@")[2].rstrip(">"))
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join(_lines(message)) + "\n")
    return mail


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    yield message["text"]
    yield ""
    for job in message.get("jobs", ()):
        yield f"{job['job']} {job['state']} {job['reason']}".rstrip()
    for name, value in message.get("now", {}).items():
        yield f"{name}: {value}, was {message['was'][name]}"
    yield ""
    yield "What happened to a study: mla-med ledger show JOB"
    yield "What waits for a person:  mla-med night held"
