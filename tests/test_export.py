"""An exported checkpoint drafts what the checkpoint drafts, word for word, without PyTorch."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.adversarial import train_tokenizer
from evaluation.exported import draft_of, patients_of
from evaluation.linter import random_findings
from mla_med.drafting import write
from mla_med.errors import CheckpointError, ConfigError
from mla_med.imaging.grid import CHEST_CT, Preprocessing
from mla_med.looking import Prepared, find, image_feature, see
from mla_med.model import CHECKPOINTS
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import load_checkpoint, save_checkpoint
from mla_med.model.config import tiny
from mla_med.model.export import export_checkpoint, quantise
from mla_med.model.exported import Verdict, load_exported, threads_allowed
from mla_med.model.gate import SCOPES
from mla_med.model.mla import MLAModel
from mla_med.model.seen import to_numpy
from mla_med.report.render import body_text, render_report

onnxruntime = pytest.importorskip("onnxruntime")
SETTINGS = replace(CHEST_CT, shape=(24, 20, 28), spacing_mm=12.0)
CONTEXT = "61 years, F, cough"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of random weights, which prefers what it likes, and what was exported of it."""
    torch.manual_seed(5)
    config = tiny(
        vocab_size=512,
        preprocessing=SETTINGS.to_dict(),
        depth=2,
        keep_ratio=0.7,
        keep_stages=(0.4,),
        decoder={"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 1280},
    )
    model = MLAModel(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    texts = [body_text(render_report(random_findings("chest_ct", random.Random(n)))) for n in range(8)]
    model.tokenizer = train_tokenizer(texts, vocab_size=512)
    codes, width = config.finding_keys, config.width
    calibration = Calibration(
        thresholds={code: 0.0 if n % 3 == 0 else 1.0 for n, code in enumerate(codes)},
        feature_mean=(0.0,) * width,
        feature_precision=tuple(map(tuple, np.eye(width).tolist())),
        feature_limit=1e9,
        further_from=dict.fromkeys(codes, -9.0),
    )
    home = tmp_path_factory.mktemp("exported")
    source = save_checkpoint(home / "whole", model, calibration, SCOPES["chest_ct"], "tiny", "1", "card")
    return source, export_checkpoint(load_checkpoint(source), source, home / "onnx")


def prepared(seed: int) -> Prepared:
    image = np.random.default_rng(seed).random((3, *SETTINGS.shape), np.float32)
    affine = np.diag([12.0, 12.0, 12.0, 1.0]).astype(np.float32)
    affine[:3, 3] = (-150, -120, 40)
    return Prepared.whole(image, affine)


def drafted(checkpoint, seed: int, context: str = CONTEXT):
    seen = see(prepared(seed), context, checkpoint.model)
    findings = find(seen, checkpoint.model, checkpoint.calibration)
    return findings, write(findings, seen, checkpoint.model, "")


CASES = ((0, CONTEXT), (2, "77 years, O, a much longer indication than before"))


@pytest.fixture(scope="module")
def whole(folders):
    """The checkpoint, and what it drafts through PyTorch."""
    checkpoint = load_checkpoint(folders[0])
    return checkpoint, [drafted(checkpoint, seed, context) for seed, context in CASES]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_drafts_the_same_words_and_findings(folders, whole, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    checkpoint, wanted = whole
    other = load_exported(folders[1], backend)
    assert other.weights_sha256 == checkpoint.weights_sha256
    for (seed, context), (findings, report) in zip(CASES, wanted, strict=True):
        same, again = drafted(other, seed, context)
        assert any(f.size_mm for f in findings)
        assert same == findings
        assert again == report
    seen, also = (see(prepared(0), CONTEXT, one.model) for one in (checkpoint, other))
    for name in ("presence_logits_BF", "site_logits_BFT", "size_mm_BF", "position_BF3"):
        one, two = (to_numpy(getattr(x.outputs, name)) for x in (seen, also))
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-2)
    feature, of_other = image_feature(checkpoint.model, seen), image_feature(other.model, also)
    np.testing.assert_allclose(of_other, feature, atol=1e-4)


def test_only_the_foremost_of_several_lesions_has_the_confidence_that_was_calibrated(whole):
    _, ((findings, _), _) = whole
    several = [c for c, n in Counter(f.code for f in findings).items() if n > 1]
    assert several
    for code in several:
        foremost, *further = (f.confidence for f in findings if f.code == code)
        assert foremost is not None
        assert further == [None] * len(further)


@pytest.mark.skipif(not os.environ.get("MLA_MED_SLOW"), reason="takes minutes: MLA_MED_SLOW=1")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_packaged_model_drafts_the_same_words_and_findings_of_phantoms(name, tmp_path):
    source = CHECKPOINTS[name]
    checkpoint = load_checkpoint(source)
    export_checkpoint(checkpoint, source, tmp_path / "onnx")
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    patients = tuple(patients_of(checkpoint.scope.examination, settings, 4))
    for backend in ("onnx", "openvino"):
        other = load_exported(tmp_path / "onnx", backend)
        for patient in patients:
            assert draft_of(other, patient) == draft_of(checkpoint, patient)


def test_a_draft_through_onnx_imports_no_torch(folders):
    code = f"""
import sys
import mla_med.drafting, mla_med.documents.write, mla_med.cli
from pathlib import Path
from mla_med.model.exported import load_exported
load_exported(Path({str(folders[1])!r}))
print([m for m in ("torch", "monai", "transformers") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_a_runtime_takes_no_more_threads_than_a_worker_may(monkeypatch):
    for said, threads in (("2", 2), ("", 0), ("4,2", 0)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads_allowed() == threads


def test_what_is_missing_is_said(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"see\.onnx is missing"):
        load_exported(tmp_path)
    with pytest.raises(ConfigError, match="No backend"):
        load_exported(folders[1], "tensorrt")


def test_eight_bits_are_refused_where_the_judge_says_so(folders, tmp_path):
    made = Path(shutil.copytree(folders[1], tmp_path / "onnx"))
    before = (made / "step.onnx").read_bytes()
    seen = []

    def judge(one, other):
        seen.append((one.weights_sha256, other.weights_sha256))
        return Verdict((("finding F1", 0.9, 0.5, False),), 0, 8)

    words = quantise(made, judge)
    assert words.startswith("INT8_REFUSED")
    assert (made / "step.onnx").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnx"]
    # whoever compares measurements must see that they are of two models
    assert seen[0][0] != seen[0][1]


def test_eight_bits_are_written_where_the_judge_agrees(folders, tmp_path):
    made = Path(shutil.copytree(folders[1], tmp_path / "onnx"))
    size = (made / "step.onnx").stat().st_size
    words = quantise(made, lambda one, other: Verdict((("finding F1", 0.9, 0.9, True),), 8, 8))
    assert words.startswith("Weights in 8 bits")
    assert (made / "step.onnx").stat().st_size < size
    assert json.loads((made / "exported.json").read_text())["int8"]
    assert drafted(load_exported(made), 0)[1].sentences
