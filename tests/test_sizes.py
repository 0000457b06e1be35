"""Size heads fitted in closed form (dapt/sizes.py)."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_world import examples_in, small_model, write_corpus

from dapt import sizes
from dapt.finish import calibrate_on, main, recalibrate, size_differences_mm
from dapt.sizes import fit_ridge, refit_sizes
from mla_med.corpus import SPLITS, load_image, read_examples, read_settings
from mla_med.errors import CheckpointError, ConfigError
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.values import values_of
from mla_med.model.calibrate import MIN_RETESTED, Calibration
from mla_med.model.checkpoint import as_stored, load_checkpoint, save_checkpoint
from mla_med.model.gate import SCOPES
from mla_med.report.schema import CHEST_CT


def test_a_head_is_the_ridge_regression_of_what_sizes_lack():
    rng = np.random.default_rng(0)
    known_LH = rng.normal(3.0, 2.0, (40, 6))
    lacking_L = 0.3 + known_LH @ rng.normal(0, 0.1, 6) + rng.normal(0, 0.05, 40)
    weight_H, bias = fit_ridge(known_LH, lacking_L, 30.0)
    # by least squares, the ridge as six more lesions that lack nothing
    scale_H = known_LH.std(0)
    even_LH = (known_LH - known_LH.mean(0)) / scale_H
    more = np.vstack([even_LH, np.sqrt(30.0) * np.eye(6)])
    wanted = np.linalg.lstsq(more, np.append(lacking_L - lacking_L.mean(), np.zeros(6)), rcond=None)[0]
    assert weight_H * scale_H == pytest.approx(wanted, abs=1e-5)
    assert known_LH.mean(0) @ weight_H + bias == pytest.approx(lacking_L.mean())


def test_what_hardly_varies_gets_no_voice():
    """Else a rounding, which is another in the next process, would change every size."""
    rng = np.random.default_rng(0)
    known_LH = np.hstack([rng.normal(3.0, 2.0, (40, 3)), 5.0 + rng.normal(0, 1e-6, (40, 1))])
    lacking_L = known_LH[:, :3] @ [0.1, -0.2, 0.3] + rng.normal(0, 0.05, 40)
    weight_H, _ = fit_ridge(known_LH, lacking_L, 10.0)
    assert abs(weight_H[3]) < 1
    assert np.abs(weight_H[:3]).min() > 0.05


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sizes of 1 to 71 mm in both splits, 24 of them learnt and 12 unseen."""
    corpus = write_corpus(tmp_path_factory.mktemp("sizes") / "corpus", n=72, validation=0)
    rows = (corpus / "train.jsonl").read_text().splitlines(keepends=True)
    (corpus / "train.jsonl").write_text("".join(row for k, row in enumerate(rows) if k % 6 < 4))
    (corpus / "validation.jsonl").write_text("".join(row for k, row in enumerate(rows) if k % 6 >= 4))
    return corpus, small_model(examples_in(corpus), fusion_type="full")


def _off(model, examples):
    _, lacking = sizes._read(model.eval(), tuple(e for e in examples if e.findings), 8)
    return float(np.nanmean(np.abs(lacking)))


def test_sizes_of_a_model_come_nearer_and_nothing_else_changes(world):
    corpus, untaught = world
    model, train = as_stored(untaught), examples_in(corpus)
    before, held_out = _off(model, train), _off(model, examples_in(corpus, "validation"))
    changed = refit_sizes(model, train, examples_in(corpus, "validation"))
    assert list(changed) == ["lung_nodule"]
    one = changed["lung_nodule"]
    assert (one.learnt, one.unseen) == (24, 12)
    assert one.before == pytest.approx(held_out, rel=1e-6)
    assert _off(model, examples_in(corpus, "validation")) == pytest.approx(one.after, rel=1e-3)
    assert one.after < held_out
    assert _off(model, train) < before
    others = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, as_stored(untaught).state_dict()[name])
    }
    assert others == {"heads.size.weight_FCD", "heads.size.bias_FC"}


@pytest.mark.parametrize(("name", "enough"), [("ENOUGH", 25), ("ENOUGH_UNSEEN", 13)])
def test_a_few_lesions_change_no_head(world, monkeypatch, name, enough):
    corpus, untaught = world
    monkeypatch.setattr(sizes, name, enough)
    model = as_stored(untaught)
    assert refit_sizes(model, examples_in(corpus), examples_in(corpus, "validation")) == {}
    assert torch.equal(model.heads.size.bias_FC, as_stored(untaught).heads.size.bias_FC)


def test_a_checkpoint_gets_sizes_and_calibration_and_keeps_what_else_lies_there(world, tmp_path, monkeypatch):
    corpus, untaught = world
    monkeypatch.setattr("dapt.finish.size_differences_mm", lambda model, examination, phantoms: {})
    model = as_stored(untaught)
    calibration, _, _ = calibrate_on(model, corpus)
    folder = save_checkpoint(
        tmp_path / "one", model, calibration, SCOPES["chest_ct"], "boxes", "0", "# boxes\n"
    )
    (folder / "pruned.json").write_text("{}")
    untouched = (folder / "model.safetensors").read_bytes()
    assert "## Sizes" not in recalibrate(folder, corpus)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        recalibrate(folder, corpus, coverage=90)
    with pytest.raises(ConfigError, match="add --sizes"):
        recalibrate(folder, corpus, rich=[corpus])
    assert (folder / "model.safetensors").read_bytes() == untouched
    said = recalibrate(folder, corpus, sizes=True)
    again = recalibrate(folder, corpus)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# boxes\n")
    titles = ("## Held-out phantoms", "## Sizes", "## Calibration", "## Values")
    assert [card.count(title) for title in titles] == [1, 1, 1, 1]
    assert said in card
    assert again.split("## Sizes")[1] in card
    assert "| lung_nodule | 24 | 12 |" in said
    assert "## Calibration" in again
    assert (folder / "pruned.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    there = load_checkpoint(folder)
    assert (there.name, there.version) == ("boxes", "0")
    assert _off(there.model, examples_in(corpus)) < _off(model, examples_in(corpus))
    json.loads((folder / "calibration.json").read_text())


def test_the_limits_of_values_are_set_alone(world, tmp_path, monkeypatch):
    corpus, untaught = world
    monkeypatch.setattr("dapt.finish.predict", None)  # no network is asked
    before = Calibration({"lung_nodule": 0.25}, (0.5,), ((2.0,),), 3.0)
    folder = save_checkpoint(tmp_path / "one", untaught, before, SCOPES["chest_ct"], "boxes", "0", "# b\n")
    weights = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr("sys.argv", ["finish", str(folder), "--corpus", str(corpus), "--values"])
    assert main() == main() == 0
    calibration = load_checkpoint(folder).calibration
    assert replace(calibration, usual=before.usual) == before
    assert 0 < calibration.usual.limits["CT"] < 1
    low, high = calibration.usual.share
    settings = read_settings(corpus)
    held_out = [e for split in ("validation", "test") for e in read_examples(corpus, split)]
    shares = [values_of(load_image(e, settings), e.present, settings).share for e in held_out]
    assert (low, high) == pytest.approx((0.6 * min(shares), min(1, 1.4 * max(shares))))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# b\n")
    assert card.count("## Values") == 1
    assert "## Calibration" not in card
    assert (folder / "model.safetensors").read_bytes() == weights
    monkeypatch.setattr("sys.argv", [*sys.argv, "--sizes"])
    assert main() == 1


def test_strangers_sharpen_a_calibration(world, tmp_path, monkeypatch):
    corpus, untaught = world
    monkeypatch.setattr("dapt.finish.size_differences_mm", lambda model, examination, phantoms: {})
    calibration, _, few = calibrate_on(untaught, corpus)
    folder = save_checkpoint(
        tmp_path / "one", untaught, calibration, SCOPES["chest_ct"], "boxes", "0", "# b\n"
    )
    with pytest.raises(ConfigError, match="are in the corpus, or there twice"):
        recalibrate(folder, corpus, unseen=[corpus])
    strangers = tmp_path / "strangers"
    shutil.copytree(corpus, strangers)
    for split in SPLITS:
        rows = [json.loads(row) for row in (strangers / f"{split}.jsonl").read_text().splitlines()]
        lines = (json.dumps(row | {"id": f"another {row['id']}"}) + "\n" for row in rows)
        (strangers / f"{split}.jsonl").write_text("".join(lines))
    with pytest.raises(ConfigError, match="or there twice"):
        recalibrate(folder, corpus, unseen=[strangers, strangers])
    more = len(read_examples(strangers, "all"))
    assert f"Set on the {few + more} held-out phantoms" in recalibrate(folder, corpus, unseen=[strangers])
    answer, before = (c.answers["lung_nodule"] for c in (load_checkpoint(folder).calibration, calibration))
    assert answer.num_present + answer.num_absent == few + more > before.num_present + before.num_absent


@pytest.mark.parametrize("change", [{"examination": "brain_mr"}, {"spacing_mm": 3.0}])
def test_a_corpus_that_a_model_cannot_read_calibrates_nothing(world, tmp_path, change):
    corpus, untaught = world
    model = as_stored(untaught)
    folder = save_checkpoint(
        tmp_path / "one",
        model,
        Calibration({}, (), (), 1.0),
        SCOPES["chest_ct"],
        "boxes",
        "0",
        "# b\n",
    )
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    about = json.loads((other / "corpus.json").read_text())
    for name, value in change.items():
        (about["preprocessing"] if name in about["preprocessing"] else about)[name] = value
    (other / "corpus.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="reads other images or looks for other findings"):
        recalibrate(folder, other)


def test_a_head_that_comes_no_nearer_on_the_unseen_stays(world, monkeypatch):
    corpus, untaught = world
    train, unseen, model = examples_in(corpus), examples_in(corpus, "validation"), as_stored(untaught)
    read = sizes._read

    def right_of_the_unseen(model, examples, batch):
        known_NFH, lacking_NF = read(model, examples, batch)
        return known_NFH, lacking_NF * (examples is not unseen)

    monkeypatch.setattr(sizes, "_read", right_of_the_unseen)
    assert refit_sizes(model, train, unseen) == {}
    assert torch.equal(model.heads.size.weight_FCD, as_stored(untaught).heads.size.weight_FCD)


@pytest.mark.parametrize(("phantoms", "scanned"), [(4, 4), (20, 60)])
def test_what_was_seen_too_seldom_is_scanned_again(phantoms, scanned, monkeypatch):
    """Nodules are seen in every third scan of one, thyroid nodules never, everything else always."""
    given: list[tuple[str, ...]] = []

    def scan(seed, examination, codes, settings):
        given.append(codes)
        return codes, None, None, ""

    class Sees:
        config = SimpleNamespace(finding_keys=tuple(CHEST_CT), preprocessing=Preprocessing().to_dict())

        def encode(self, codes, *_):
            return codes

        def find(self, codes):
            seen = [c for c in codes if c != "thyroid_nodule" and (c != "lung_nodule" or len(given) % 3 == 0)]
            logits = [1.0 if code in seen else -1.0 for code in CHEST_CT]
            sizes = torch.tensor([[10.0] * len(CHEST_CT), [12.0] * len(CHEST_CT)])
            return SimpleNamespace(presence_logits_BF=torch.tensor([logits] * 2), size_mm_BF=sizes)

    monkeypatch.setattr("dapt.finish.scan_twice", scan)
    differences = size_differences_mm(Sees(), "chest_ct", phantoms)
    assert len(given) == scanned
    if phantoms > 10:
        assert len(differences["lung_nodule"]) == MIN_RETESTED
        assert set(differences["lung_nodule"]) == {2.0}
        assert given[-1] == ("thyroid_nodule",)
        assert len(differences["thyroid_nodule"]) == 0
