"""A corpus of a few noisy boxes and an untrained checkpoint: what the benches of networks are tried on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from dapt.tokenizer import train_tokenizer
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import save_checkpoint
from mla_med.model.config import findings_of, tiny
from mla_med.model.conformal import Answer, log_odds
from mla_med.model.gate import SCOPES
from mla_med.model.mla import MLAModel
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import CHEST_CT
from mla_med.report.style import load_style
from mla_med.types import Finding, Side

SETTINGS = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
RIGHT_TOP = Finding("lung_nodule", site="upper_lobe", side=Side.RIGHT, size_mm=12.0)
LEFT_LOW = Finding("lung_nodule", site="lower_lobe", side=Side.LEFT, size_mm=7.0)
EFFUSION = Finding("pleural_effusion", side=Side.LEFT)
PATIENTS = ((RIGHT_TOP, LEFT_LOW), (), (EFFUSION,))
BOX = [[-20.0, -20.0, 100.0], [20.0, 20.0, 140.0]]


def write_corpus(folder: Path) -> Path:
    """Three patients to test on, of whom the last has nothing that the first has, and two to train on."""
    (folder / "images").mkdir(parents=True)
    seeds = {"test": (0, 1, 2), "train": (0, 2), "validation": ()}
    for split, patients in seeds.items():
        rows = [_row(folder, split, number) for number in patients]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    about = {"examination": "chest_ct", "languages": ["en", "zh"], "preprocessing": SETTINGS.to_dict()}
    about |= {split: len(patients) for split, patients in seeds.items()} | {
        "cohort": {"seed": 7, "site": "a"}
    }
    (folder / "corpus.json").write_text(json.dumps(about))
    return folder


def _row(folder: Path, split: str, number: int) -> dict:
    seed = 7_000_000 + number + 10 * (split == "train")
    name, findings = f"phantom-{seed:010d}", PATIENTS[number]
    hu = np.random.default_rng(seed).normal(-300, 300, SETTINGS.shape).astype(np.int16)
    np.save(folder / "images" / f"{name}.npy", hu)
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -186, -138, -186
    reports = {}
    for language in ("en", "zh"):
        style = load_style("prose", language)
        reports[language] = body_text(render_report(findings, style), style)
    return {
        "id": name,
        "affine": affine.tolist(),
        "present": [True] * 3,
        "contexts": {"en": "61 years, F, cough", "zh": "61 years, F, 咳嗽"},
        "findings": [
            {"code": f.code, "site": f.site, "side": f.side, "size_mm": f.size_mm} for f in findings
        ],
        "boxes_mm": [BOX] * len(findings),
        "reports": reports,
    }


def calibration(cut: float = 0.5, codes=tuple(CHEST_CT), **changes) -> Calibration:
    """Always answers, present from `cut` on; every image is familiar."""
    answer = Answer(cut, cut - 1e-6, cut, 1.0, 1e-6 - log_odds(cut), 50, 50)
    values = {
        "thresholds": dict.fromkeys(codes, cut),
        "feature_mean": (0.0,) * 32,
        "feature_precision": tuple(map(tuple, np.eye(32).tolist())),
        "feature_limit": 1e6,
        "answers": dict.fromkeys(codes, answer),
        "coverage": 0.9,
    }
    return Calibration(**{**values, **changes})


def write_checkpoint(folder: Path, corpus: Path, cut: float = 0.5) -> Path:
    """Random weights, the words of the corpus."""
    torch.manual_seed(3)
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 1024}
    config = tiny(findings=findings_of(CHEST_CT), vocab_size=1024, decoder=sizes, image_dim=SETTINGS.shape)
    config.preprocessing = SETTINGS.to_dict()
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    model = MLAModel(config)
    model.tokenizer = train_tokenizer([text for row in rows for text in row["reports"].values()], 1024)
    return save_checkpoint(
        folder, model.eval(), calibration(cut), SCOPES["chest_ct"], "tiny", "0", "# tiny\n"
    )
