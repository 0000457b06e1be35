"""Prefect flows: thin. Each decorates a tested function; no torch and no medicine in here.

Without a server each process starts its own for the length of a run; the first start migrates a
database and can take longer than Prefect waits for by default.
"""

import os

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
