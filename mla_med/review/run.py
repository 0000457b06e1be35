"""Settings -> the server that runs until it is stopped."""

from __future__ import annotations

from pathlib import Path

import uvicorn

from mla_med.review.app import app_of
from mla_med.review.settings import check_binding, read_review


def serve(settings_file: Path) -> None:
    settings = read_review(settings_file)
    check_binding(settings)
    uvicorn.run(
        app_of(settings_file),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.cert_file or None,
        ssl_keyfile=settings.key_pem_file or None,
        # whoever sends X-Forwarded-For must not become the proxy that is believed
        proxy_headers=False,
        server_header=False,
        # addresses hold what was searched for
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=10,
    )
