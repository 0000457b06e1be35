"""A checkpoint directory <-> what drafts with it. The directory explains itself.

config.json  model.safetensors  tokenizer.json  calibration.json  checkpoint.json  README.md
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mla_med.errors import CheckpointError
from mla_med.model import DEFAULT_CHECKPOINT
from mla_med.model.calibrate import Calibration
from mla_med.model.gate import Scope
from mla_med.model.mla import MLAModel
from mla_med.report.schema import CHEST_CT


@dataclass(frozen=True, slots=True)
class Checkpoint:
    model: MLAModel
    calibration: Calibration
    scope: Scope
    name: str
    version: str
    weights_sha256: str


def load_checkpoint(folder: Path | None = None) -> Checkpoint:
    """Reads a checkpoint, the packaged one by default. CheckpointError says what is missing."""
    folder = DEFAULT_CHECKPOINT if folder is None else folder
    for name in ("config.json", "model.safetensors", "tokenizer.json", "calibration.json", "checkpoint.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"No checkpoint at {folder}: {name} is missing. Give the folder that training wrote, or "
                "leave --checkpoint out to use the packaged one.",
                code="CHECKPOINT_MISSING",
            )
    from safetensors import SafetensorError
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    try:
        about = json.loads((folder / "checkpoint.json").read_text())
        calibration = Calibration.from_dict(json.loads((folder / "calibration.json").read_text()))
        model = MLAModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        model.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, json.JSONDecodeError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint at {folder} is damaged ({type(error).__name__}). Copy or train it again.",
            code="CHECKPOINT_DAMAGED",
        ) from error
    if model.config.finding_keys != tuple(CHEST_CT):
        raise CheckpointError(
            f"The checkpoint at {folder} knows other findings than this version of mla_med. "
            "Use the version it was trained with, or train it again.",
            code="CHECKPOINT_SCHEMA",
        )
    scope = about["scope"] | {"body_parts": tuple(about["scope"]["body_parts"])}
    return Checkpoint(
        model, calibration, Scope(**scope), about["name"], about["version"], weights_digest(folder)
    )


def save_checkpoint(
    folder: Path, model: MLAModel, calibration: Calibration, scope: Scope, name: str, version: str, card: str
) -> Path:
    """Writes the directory. Weights in half precision: half the size, the same findings."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    model.tokenizer.save_pretrained(folder)
    _write_json(folder / "calibration.json", calibration.to_dict())
    _write_json(folder / "checkpoint.json", {"name": name, "version": version, "scope": asdict(scope)})
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights and the calibration: what decides about a draft."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "calibration.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
