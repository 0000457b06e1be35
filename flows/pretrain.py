"""Corpus -> checkpoint, as a flow."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows import wordless


@flow(name="pretrain", persist_result=False, retries=2, timeout_seconds=72 * 3600)
def pretrain_flow(
    corpus: Path,
    work: Path,
    out: Path,
    text_epochs: int = 1,
    rounds: int = 24,
    epochs: int = 8,
    start: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Texts, small lesions in patches, whole images with their reports (S1, S2, S3), calibration. `start`: a
    checkpoint to go on from. A killed run goes on from its last finished epoch or round."""
    logger = get_run_logger()
    with wordless():
        from dapt.finish import train_checkpoint
        from dapt.train_config import TrainConfig

        config = TrainConfig(text_epochs=text_epochs, rounds=rounds, epochs=epochs, device=device, seed=seed)
        return train_checkpoint(corpus, work, out, config, lambda row: logger.info("%s", row), start=start)
