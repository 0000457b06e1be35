"""A checkpoint directory <-> what drafts with it. The directory explains itself.

config.json  model.safetensors  tokenizer.json  calibration.json  checkpoint.json  README.md
"""

from __future__ import annotations

import hashlib
import json
import shutil
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mla_med.errors import CheckpointError
from mla_med.model import DEFAULT_CHECKPOINT
from mla_med.model.calibrate import Calibration
from mla_med.model.gate import Scope
from mla_med.report.schema import SCHEMAS

FILES = ("config.json", "model.safetensors", "tokenizer.json", "calibration.json", "checkpoint.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    model: Any
    """An MLAModel, or what runs an exported one: a model.network.Network."""
    calibration: Calibration
    scope: Scope
    name: str
    version: str
    weights_sha256: str


def load_checkpoint(folder: Path | None = None) -> Checkpoint:
    """Reads a checkpoint, the packaged one by default. CheckpointError says what is missing."""
    folder = DEFAULT_CHECKPOINT if folder is None else folder
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"No checkpoint at {folder}: {name} is missing. Give the folder that training wrote, or "
                "leave --checkpoint out to use the packaged one.",
                code="CHECKPOINT_MISSING",
            )
    return read_checkpoint(folder, read_model(folder))


def read_checkpoint(folder: Path, model: Any, digest: str | None = None) -> Checkpoint:
    """A network with what lies beside it: calibration, scope and name. `digest`: of the checkpoint that the
    network was made of, where the folder holds another form of it."""
    try:
        about = json.loads((folder / "checkpoint.json").read_text())
        calibration = Calibration.from_dict(json.loads((folder / "calibration.json").read_text()))
        scope = _read_scope(about["scope"])
        name, version = str(about["name"]), str(about["version"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(folder, error) from error
    if not set(model.config.finding_keys) <= set(SCHEMAS.get(scope.examination, ())):
        raise CheckpointError(
            f"The checkpoint at {folder} knows other findings than this version of mla_med. "
            "Use the version it was trained with, or train it again.",
            code="CHECKPOINT_SCHEMA",
        )
    return Checkpoint(model, calibration, scope, name, version, digest or checkpoint_digest(folder))


def read_model(folder: Path) -> Any:
    """The network (MLAModel) of a checkpoint, or of what a stage of `mla-med adapt` left, in single precision
    and eval mode. CheckpointError where it is missing, damaged or of another shape."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    # a draft through an exported model needs neither of these
    from mla_med.model.mla import MLAModel

    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"No model at {folder}: config.json is missing. Give a checkpoint, or the model/ of a stage.",
            code="CHECKPOINT_MISSING",
        )
    logging.disable_progress_bar()
    try:
        model, loaded = MLAModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise _damaged(folder, error) from error
    # transformers fills what the file lacks with random numbers
    if any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise CheckpointError(
            f"The weights at {folder} are of another model than its config.json. Copy or train it again.",
            code="CHECKPOINT_DAMAGED",
        )
    return model.eval()


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint at {folder} is damaged ({type(error).__name__}). Copy or train it again.",
        code="CHECKPOINT_DAMAGED",
    )


def _read_scope(values: dict[str, Any]) -> Scope:
    # JSON has no tuples
    read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Scope(**read)


def save_checkpoint(
    folder: Path, model: Any, calibration: Calibration, scope: Scope, name: str, version: str, card: str
) -> Path:
    """Writes the directory, whole or not at all. Weights in half precision: half the size, the same
    findings."""
    part = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(part, state_dict=state)
    _write_json(part / "calibration.json", calibration.to_dict())
    _write_json(part / "checkpoint.json", {"name": name, "version": version, "scope": asdict(scope)})
    (part / "README.md").write_text(card, encoding="utf-8")
    for path in part.iterdir():
        path.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    return part.replace(folder)


def as_stored(model: Any) -> Any:
    """A copy, in eval mode, with the weights that `save_checkpoint` will keep: what is calibrated. Where
    embeddings lie close together, half precision moves them further than they lie apart."""
    import torch

    stored = deepcopy(model)
    with torch.no_grad():
        for tensor in (*stored.parameters(), *stored.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return stored.eval()


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of everything that decides about a draft: weights, configuration, calibration, scope,
    tokenizer."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
