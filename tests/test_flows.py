"""Flows: real Prefect, with no server set up beforehand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("flow", ["draft_study"])
def test_a_study_is_drafted_by_a_flow_with_no_server_set_up(flow, phantom_series, tmp_path):
    code = (
        "from pathlib import Path\n"
        f"from flows.{flow} import {flow}_flow\n"
        f"print('DRAFTED', {flow}_flow(Path({str(phantom_series)!r}), Path({str(tmp_path / 'out')!r})))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    clean["PREFECT_HOME"] = str(tmp_path / "prefect")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, timeout=300
    )
    assert "DRAFTED True" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "out" / "draft.dcm").is_file()
    assert "Completed" in done.stderr
