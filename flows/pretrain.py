"""Corpus -> checkpoint, as a flow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="pretrain", persist_result=False, retries=2, timeout_seconds=72 * 3600)
def pretrain_flow(
    corpus: Path, work: Path, out: Path, epochs: int = 7, device: str = "cpu", seed: int = 0
) -> Path:
    """Text stage, report task, calibration. A killed run goes on from its last finished epoch."""
    from dapt.finish import train_checkpoint
    from dapt.train import TrainConfig

    logger = get_run_logger()
    config = TrainConfig(epochs=epochs, device=device, seed=seed)
    return train_checkpoint(corpus, work, out, config, lambda row: logger.info("%s", row))
