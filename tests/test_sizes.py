"""Size heads fitted in closed form (dapt/sizes.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_world import examples_in, small_model, write_corpus

from dapt import sizes
from dapt.finish import recalibrate
from dapt.sizes import RIDGES, fit_ridge, refit_sizes
from mla_med.model.checkpoint import as_stored, load_checkpoint, save_checkpoint
from mla_med.model.gate import SCOPES


@pytest.fixture
def lesions():
    rng = np.random.default_rng(0)
    known_LH = rng.normal(3.0, 2.0, (40, 6))
    return known_LH, 0.3 + known_LH @ rng.normal(0, 0.1, 6) + rng.normal(0, 0.05, 40)


def _ridge(known_LH, lacking_L, ridge):
    """By the normal equations, on columns of the same mean and spread as all lesions have."""
    middle_H, scale_H = known_LH.mean(0), known_LH.std(0)
    a = (known_LH - middle_H) / scale_H
    weight_H = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ (lacking_L - lacking_L.mean()))
    return lambda x: lacking_L.mean() + (x - middle_H) / scale_H @ weight_H


def test_a_head_is_that_of_the_ridge_that_predicts_best_what_was_left_out(lesions):
    known_LH, lacking_L = lesions
    weight_H, bias, off = fit_ridge(known_LH, lacking_L)
    by_ridge = {}
    for ridge in RIDGES:
        scale_H = known_LH.std(0)
        a = np.column_stack([np.ones(40), (known_LH - known_LH.mean(0)) / scale_H])
        left = []
        for n in range(40):  # really leaving it out, with the scales of all
            b, y = np.delete(a, n, 0), np.delete(lacking_L, n)
            fitted = np.linalg.solve(b.T @ b + np.diag([0.0, *[ridge] * 6]), b.T @ y)
            left.append(abs(lacking_L[n] - a[n] @ fitted))
        by_ridge[ridge] = np.mean(left)
    best = min(by_ridge, key=by_ridge.get)
    assert off == pytest.approx(by_ridge[best], rel=1e-4)
    assert known_LH @ weight_H + bias == pytest.approx(_ridge(known_LH, lacking_L, best)(known_LH), abs=1e-4)


def test_of_noise_no_better_head_is_promised():
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        known_LH, lacking_L = rng.normal(size=(30, 50)), rng.normal(size=30)
        shares.append(fit_ridge(known_LH, lacking_L)[2] / np.abs(lacking_L).mean())
    assert np.mean(shares) > 0.97


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("sizes") / "corpus", n=48)
    return corpus, small_model(examples_in(corpus), fusion_type="full")


def _off(model, examples):
    _, lacking = sizes._read(model.eval(), tuple(e for e in examples if e.findings), 8)
    return float(np.nanmean(np.abs(lacking)))


def test_sizes_of_a_model_come_nearer_and_nothing_else_changes(world):
    corpus, untaught = world
    model, train = as_stored(untaught), examples_in(corpus)
    before, held_out = _off(model, train), _off(model, examples_in(corpus, "validation"))
    changed = refit_sizes(model, train)
    assert list(changed) == ["lung_nodule"]
    assert changed["lung_nodule"].lesions == 24
    assert changed["lung_nodule"].before == pytest.approx(before, rel=1e-6)
    assert _off(model, train) < 0.5 * before
    assert _off(model, examples_in(corpus, "validation")) < held_out
    others = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, as_stored(untaught).state_dict()[name])
    }
    assert others == {"heads.size.weight_FCD", "heads.size.bias_FC"}


def test_a_few_lesions_change_no_head(world, monkeypatch):
    corpus, untaught = world
    monkeypatch.setattr(sizes, "ENOUGH", 25)
    model = as_stored(untaught)
    assert refit_sizes(model, examples_in(corpus)) == {}
    assert torch.equal(model.heads.size.bias_FC, as_stored(untaught).heads.size.bias_FC)


def test_a_checkpoint_gets_sizes_and_calibration_and_keeps_what_else_lies_there(world, tmp_path, monkeypatch):
    corpus, untaught = world
    monkeypatch.setattr("dapt.finish.size_differences_mm", lambda model, examination, phantoms: {})
    from dapt.finish import calibrate_on

    model = as_stored(untaught)
    calibration, _, _ = calibrate_on(model, corpus)
    folder = save_checkpoint(
        tmp_path / "one", model, calibration, SCOPES["chest_ct"], "boxes", "0", "# boxes\n"
    )
    (folder / "pruned.json").write_text("{}")
    untouched = (folder / "model.safetensors").read_bytes()
    assert "## Sizes" not in recalibrate(folder, corpus)
    assert (folder / "model.safetensors").read_bytes() == untouched
    said = recalibrate(folder, corpus, sizes=True)
    again = recalibrate(folder, corpus)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# boxes\n")
    assert [card.count(title) for title in ("## Sizes", "## Calibration")] == [1, 1]
    assert "| lung_nodule | 24 |" in said
    assert "## Calibration" in again
    assert (folder / "pruned.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    there = load_checkpoint(folder)
    assert (there.name, there.version) == ("boxes", "0")
    assert _off(there.model, examples_in(corpus)) < 0.5 * _off(model, examples_in(corpus))
    json.loads((folder / "calibration.json").read_text())
