"""A study on disk -> its draft, as a flow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="draft_study", persist_result=False)
def draft_study_flow(folder: Path, out: Path, checkpoint: Path | None = None) -> bool:
    """True if a draft was written, False if a refusal was; a broken study is logged by its code."""
    from mla_med.drafting import draft_folder

    logger = get_run_logger()
    draft, files = draft_folder(folder, out, checkpoint)
    codes = ", ".join(reason.code for reason in draft.gate.reasons)
    logger.info("%s: %d files", f"refused: {codes}" if codes else "drafted", len(files))
    return draft.gate.accepted
