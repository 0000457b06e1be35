"""QA phantoms through the live path, each week, as a flow: fails where the system is not what it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.logging import get_run_logger

from flows import FlowError, settings_of, wordless


@flow(name="drift", persist_result=False, retries=1, retry_delay_seconds=1800, timeout_seconds=3600)
def drift_flow(settings_file: Path | None = None) -> dict[str, float]:
    """-> F1 and Brier score. `settings_file`: see `settings_of`. Its pictures are of phantoms: of
    patients there are none in Prefect."""
    logger = get_run_logger()
    with wordless():
        from mla_med.night.drift import drift

        found = drift(settings_of(settings_file))
    was = asdict(found.baseline)
    rows = [{"": key, "now": value, "baseline": was[key]} for key, value in asdict(found.now).items()]
    create_table_artifact(key="drift", table=rows, description=", ".join(found.alarms) or "As it was.")
    for number, picture in enumerate(found.pictures):
        create_image_artifact(picture, key=f"qa-phantom-{number}", description="A person who does not exist.")
    logger.info("drift: %s", ", ".join(found.alarms) or "as it was")
    if found.alarms:
        raise FlowError(", ".join(found.alarms))
    return {"f1": found.now.f1, "brier": found.now.brier}
