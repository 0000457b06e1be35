"""Training: resumable to the bit, split by patient, and its checkpoint drafts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNetFeatures
from safetensors.torch import load_file, save_file

import mla_med
from dapt.__main__ import main as train_on_phantoms
from dapt.ablation import main as ablate
from dapt.augment import Augment, moved, varied
from dapt.card import training_card
from dapt.collate import report_ids, targets_of
from dapt.corpus import prepare_corpus
from dapt.finish import finish, train_checkpoint, with_sizes
from dapt.images import Images
from dapt.patches import PatchSampler
from dapt.receipts import predict
from dapt.schedule import TrainingError
from dapt.tokenizer import train_tokenizer
from dapt.train import pretrain
from dapt.train_config import TrainConfig
from dapt.trainer import Trainer
from mla_med.corpus import from_bytes, read_about, read_examples, to_bytes
from mla_med.errors import CheckpointError, ConfigError, StudyError
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import SIDES, tiny
from mla_med.model.image_encoder import Frame, frame_of
from mla_med.model.mla import MLAModel
from mla_med.phantom.cohort import CohortConfig, make_cohort, split_of
from mla_med.report.check import check_text
from mla_med.report.parse import parse_report
from mla_med.report.schema import schema_of
from mla_med.report.style import load_style
from mla_med.types import ClinicalContext, Modality, Presence

PACKAGED = Path(mla_med.__file__).parent / "checkpoints" / "chest_ct"
HEADS = PACKAGED.with_name("brain_mr")
SMALL = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
COHORT = CohortConfig(n=10, seed=3990, spacing_mm=6.0, workers=1)
TRAIN = TrainConfig(
    text_epochs=1,
    rounds=2,
    round_steps=2,
    round_patches=2,
    patches=2,
    patch=6,
    epochs=2,
    batch=3,
    precision="fp32",
)


def _model_config(positions=512):
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": positions}
    return tiny(vocab_size=1024, decoder=sizes)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(COHORT, tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def corpus(cohort, tmp_path_factory):
    return prepare_corpus(cohort, tmp_path_factory.mktemp("corpus"), SMALL, workers=1)


def test_no_patient_is_in_two_splits(corpus):
    ids = [e.id for split in ("train", "validation", "test") for e in read_examples(corpus, split)]
    assert len(ids) == len(set(ids)) == COHORT.n


def test_a_corpus_keeps_the_splits_of_its_cohort(corpus):
    about = read_about(corpus)
    assert (about["train"], about["validation"], about["test"]) == (8, 1, 1)
    assert all(split_of(int(e.id[-10:])) == "train" for e in read_examples(corpus, "train"))


def test_every_patient_has_request_and_report_in_both_languages(corpus):
    for example in read_examples(corpus, "train"):
        assert set(example.contexts) == set(example.reports) == {"en", "zh"}
        for language in ("en", "zh"):
            parsed = parse_report(example.reports[language], load_style("prose", language))
            said = {f.code for f in parsed.findings if f.presence is Presence.PRESENT}
            assert said == {finding.code for finding in example.findings}


def test_no_report_of_a_corpus_compares_with_an_earlier_study(corpus):
    for example in read_examples(corpus, "train"):
        assert all(finding.change is None for finding in example.findings)
        for language, report in example.reports.items():
            rules = {c.rule for c in check_text(report, language, ClinicalContext())}
            assert "COMPARISON_WITHOUT_PRIOR" not in rules


def test_an_image_that_is_there_is_not_made_again(cohort, corpus):
    images = sorted((corpus / "images").glob("*.npy"))
    stamps = [p.stat().st_mtime_ns for p in images]
    images[0].unlink()
    (corpus / "images" / images[0].name.replace(".npy", ".json")).unlink()
    prepare_corpus(cohort, corpus, SMALL, workers=1)
    after = [p.stat().st_mtime_ns for p in images]
    assert after[1:] == stamps[1:]
    assert after[0] != stamps[0]


def test_a_corpus_draws_what_a_cohort_of_arrays_would_hold(tmp_path):
    cohorts = [
        make_cohort(replace(COHORT, n=2, spacing_mm=12.0, form=form), tmp_path / form)
        for form in ("arrays", "truth")
    ]
    one, other = (prepare_corpus(c, tmp_path / f"of {c.name}", SMALL, workers=1) for c in cohorts)
    pairs = zip(read_examples(one, "all"), read_examples(other, "all"), strict=True)
    for a, b in pairs:
        assert a.id == b.id
        assert np.allclose(a.affine, b.affine, atol=1e-3)
        assert np.array_equal(np.load(a.image), np.load(b.image))


def test_a_missing_corpus_says_so(tmp_path):
    with pytest.raises(StudyError, match=r"corpus\.json is missing"):
        read_examples(tmp_path, "train")


def test_images_are_hu_on_the_models_grid(corpus):
    example = read_examples(corpus, "train")[0]
    hu = np.load(example.image)
    assert hu.shape == SMALL.shape
    assert hu.dtype == np.int16
    assert hu.min() < -900
    assert np.abs(np.diag(example.affine)[:3]) == pytest.approx(12.0, abs=1e-3)


def test_targets_are_what_was_planted_and_speak_of_the_largest(corpus):
    examples = read_examples(corpus, "train")
    config = _model_config()
    targets = targets_of(examples, config)
    for b, example in enumerate(examples):
        codes = {finding.code for finding in example.findings}
        assert int(targets.presence_BF[b].sum()) == len(codes)
        for code in codes:
            f = config.finding_keys.index(code)
            lesions = [finding for finding in example.findings if finding.code == code]
            sizes = [finding.size_mm for finding in lesions if finding.size_mm is not None]
            side = targets.side_BF[b, f]
            assert (SIDES[side] if side >= 0 else None) == lesions[0].side
            assert not sizes or targets.size_BF[b, f] == max(sizes)
            boxes_L23 = targets.lesion_boxes_BFL23[b, f]
            taught = boxes_L23[~boxes_L23.isnan().any(-1).any(-1)]
            assert len(taught) == len(example.parts_mm[code]) >= len(lesions)
            whole = np.array(example.boxes_mm[code])
            np.testing.assert_allclose(taught[:, 0].amin(0), whole[:, 0].min(0), atol=0.1)
            np.testing.assert_allclose(taught[:, 1].amax(0), whole[:, 1].max(0), atol=0.1)
    scattered = [e for e in examples for code in e.parts_mm if len(e.parts_mm[code]) > len(e.boxes_mm[code])]
    assert scattered


def test_stored_mr_values_come_back_to_a_sixtieth_of_a_deviation():
    values = np.linspace(-2.5, 5.0, 400, dtype=np.float32)
    assert np.abs(from_bytes(to_bytes(values)) - values).max() <= 0.0148
    assert from_bytes(to_bytes(np.zeros(1)))[0] == 0.0


def test_a_sequence_may_be_left_out_but_never_all():
    augment = Augment(hidden=1.0)
    image, present = torch.ones(3, 2, 2, 2), torch.tensor([True, False, True])
    _, kept = varied(image, present, augment, np.random.default_rng(0))
    assert torch.equal(kept, present)
    some = [
        varied(image, present, Augment(hidden=0.5), np.random.default_rng(n))[1].tolist() for n in range(20)
    ]
    assert [True, False, False] in some
    assert not any(kept[1] for kept in some)


def test_a_part_of_an_image_is_that_of_the_whole(corpus):
    where = (slice(2, 20), slice(0, 8), slice(5, 31))
    images = Images(SMALL)
    for example in read_examples(corpus, "train"):
        assert torch.equal(images.part(example, where), images.whole(example)[where])
    channels = replace(SMALL, modality=Modality.MR, windows_hu=(), sequences=("t1", "t2"))
    np.save(corpus / "channels.npy", to_bytes(np.random.default_rng(0).normal(0, 1, (2, 32, 24, 32))))
    images, example = Images(channels), replace(example, image=corpus / "channels.npy")
    assert images.part(example, where).shape == (2, 18, 8, 26)
    assert torch.equal(images.part(example, where), images.whole(example)[:, *where])


def test_an_image_and_its_affine_move_together():
    image = torch.zeros(8, 8, 8)
    image[3, 4, 5] = 1.0
    for n in range(5):
        there, affine = moved(image.clone(), np.eye(4, dtype=np.float32), 2, np.random.default_rng(n), 0.0)
        index = np.argwhere(there.numpy() == 1.0)[0]
        assert (affine @ [*index, 1.0])[:3].tolist() == [3.0, 4.0, 5.0]


def test_padding_teaches_nothing():
    tokenizer = train_tokenizer(["No emphysema.", "There is a 12 mm nodule."])
    ids, labels = report_ids(["No emphysema.", "There is a 12 mm nodule."], tokenizer)
    assert ((ids == tokenizer.pad_token_id) == (labels == -100)).all()
    assert ids[0, 0] == tokenizer.bos_token_id


class _Killed(Exception):
    pass


def _kill_in_the_second_epoch(row):
    if row.get("stage") == "S3 report" and row.get("epoch") == 1 and row.get("finished"):
        raise _Killed


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(corpus, tmp_path):
    unbroken = pretrain(corpus, tmp_path / "a", TRAIN, _model_config())
    with pytest.raises(_Killed):
        pretrain(corpus, tmp_path / "b", TRAIN, _model_config(), log=_kill_in_the_second_epoch)
    resumed = pretrain(corpus, tmp_path / "b", TRAIN, _model_config())
    for (name, a), b in zip(unbroken.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-6), name


def test_other_settings_do_not_go_on_with_a_training(corpus, tmp_path):
    pretrain(corpus, tmp_path, TrainConfig(text_epochs=1, rounds=0, epochs=0), _model_config())
    with pytest.raises(CheckpointError, match="other settings"):
        pretrain(corpus, tmp_path, TrainConfig(text_epochs=1, rounds=0, epochs=0, lr=1.0), _model_config())


def test_other_patients_or_weights_do_not_go_on_with_a_training(corpus, tmp_path):
    config = replace(TRAIN, rounds=0, epochs=1)
    pretrain(corpus, tmp_path, config, _model_config(), limit=6)
    with pytest.raises(CheckpointError, match="other patients or weights"):
        pretrain(corpus, tmp_path, config, _model_config())
    with pytest.raises(CheckpointError, match="1 epochs behind it, not 0"):
        pretrain(corpus, tmp_path, replace(config, epochs=0), _model_config(), limit=6)


def test_a_gradient_that_is_no_number_reaches_neither_weights_nor_state(corpus, tmp_path, monkeypatch):
    config = replace(TRAIN, rounds=0, epochs=1)
    whole = pretrain(corpus, tmp_path, config, _model_config())
    kept = (tmp_path / "state.safetensors").read_bytes()
    weighted = MLAModel.weighted
    monkeypatch.setattr(MLAModel, "weighted", lambda self, losses: weighted(self, losses) * torch.nan)
    with pytest.raises(TrainingError, match="no number any more"):
        pretrain(corpus, tmp_path, replace(config, epochs=2), _model_config())
    assert (tmp_path / "state.safetensors").read_bytes() == kept
    assert all(value.isfinite().all() for value in whole.parameters())


def test_a_model_without_a_map_is_taught_no_patches(corpus, tmp_path):
    model = MLAModel(tiny(fusion_type="concat"))
    trainer = Trainer(model, TRAIN, tmp_path, lambda row: None)
    assert trainer._sampler(read_examples(corpus, "train"), SMALL) is None


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        (["--batch", "0"], "CONFIG_INVALID", "1 or more"),
        (["--training-seed", "-1"], "CONFIG_INVALID", "0 or more"),
        (["--lr", "nan"], "CONFIG_INVALID", "between 0 and 1"),
        (["--device", "cuda:9"], "NO_GPU", "--device cpu"),
        (["--start", str(PACKAGED), "--fusion", "concat"], "CONFIG_INVALID", "the fusion full, not concat"),
        (["--n", "0"], "CONFIG_INVALID", "1 to 900000 patients"),
        (["--device", "gpu"], "CONFIG_INVALID", "there are cpu and cuda"),
        (["--device", "cuda"], "NO_GPU", "--device cpu"),
        (["--start", "nowhere"], "CHECKPOINT_MISSING", "nowhere"),
        (["--spacing", "0.1"], "CONFIG_INVALID", "0.5 to 12 mm"),
        (["--start", str(PACKAGED), "--spacing", "2.5"], "CHECKPOINT_DIFFERS", "reads other images"),
        (["--start", str(PACKAGED), "--widths", "8", "8"], "CONFIG_INVALID", "none smaller"),
        (["--start", str(HEADS)], "CHECKPOINT_DIFFERS", "reads other images"),
        (["--spacing", "1.5", "--widths", "8", "8"], "CONFIG_INVALID", "want 5 stages"),
        (["--start", str(PACKAGED), "--units", "1", "1"], "CONFIG_INVALID", "only where there are none"),
        (["--spacing", "1.5", "--units", "1", "1"], "CONFIG_INVALID", "want 5 stages, not 2 units"),
        (["--unseen", "nowhere"], "CORPUS_MISSING", "No corpus at nowhere"),
        (["--backbone", "resnet10", "--widths", "8"], "CONFIG_INVALID", "stages of its own"),
        (["--backbone", "resnet10", "--start", str(PACKAGED)], "CONFIG_INVALID", "of a new model"),
        (["--backbone-weights", "nowhere"], "CONFIG_INVALID", "--backbone says which"),
        (["--backbone", "resnet10", "--backbone-weights", "no.pth"], "CHECKPOINT_MISSING", "no.pth"),
    ],
)
def test_a_wrong_wish_is_one_line_before_anything_is_made(wanted, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["dapt", "--work", str(tmp_path / "work"), *wanted])
    assert train_on_phantoms() == 1
    said = capsys.readouterr().err
    assert said.startswith(code)
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_a_new_model_begins_with_published_weights_of_monais_network(corpus, tmp_path):
    theirs = ResNetFeatures("resnet10", pretrained=False, in_channels=1).state_dict()
    save_file(theirs, tmp_path / "resnet10.safetensors")
    config = TrainConfig(text_epochs=0, rounds=0, epochs=0, backbone="resnet10")
    weights = tmp_path / "resnet10.safetensors"
    model = pretrain(corpus, tmp_path / "work", config, backbone_weights=weights)
    assert model.config.backbone == "resnet10"
    ours = model.image_encoder.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "conv1.weight")
    assert torch.allclose(ours["conv1.weight"].sum(1, keepdim=True), theirs["conv1.weight"], atol=1e-6)


@pytest.mark.parametrize("examination", ["chest_ct", "brain_mr"])
def test_one_command_makes_a_checkpoint_that_drafts(examination, tmp_path, monkeypatch, capsys):
    """Phantoms, corpus, training and calibration; how sizes repeat is measured by a test of its own."""
    monkeypatch.setattr("dapt.finish.size_differences_mm", lambda *_: {})
    small = [
        "--n",
        "10",
        "--rounds",
        "0",
        "--epochs",
        "1",
        "--patches",
        "2",
        "--spacing",
        "8",
        "--seed",
        "3990",
        "--workers",
        "1",
    ]
    command = ["dapt", "--examination", examination, *small, "--work", str(tmp_path / "work")]
    monkeypatch.setattr("sys.argv", command)
    assert train_on_phantoms() == 0
    assert "written after" in capsys.readouterr().out
    made = load_checkpoint(tmp_path / "work" / "checkpoint")
    assert made.scope.examination == examination
    assert made.model.config.finding_keys == tuple(schema_of(examination))
    assert set(made.calibration.answers) == set(schema_of(examination))
    card = (tmp_path / "work" / "checkpoint" / "README.md").read_text()
    assert f"| command | `python -m dapt --examination {examination} --n 10 " in card


def test_images_that_the_model_will_not_read_calibrate_nothing(corpus, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["dapt", "--work", str(work), "--unseen", str(corpus)])
    assert train_on_phantoms() == 1
    assert "holds other images than this training" in capsys.readouterr().err
    assert not work.exists()


def test_who_is_trained_on_is_no_stranger_and_that_is_said_before_the_training(corpus, tmp_path):
    with pytest.raises(ConfigError, match="are in the corpus"):
        train_checkpoint(corpus, tmp_path / "work", tmp_path / "out", TRAIN, unseen=[corpus])
    assert not list(tmp_path.glob("[wo]*"))


def test_patients_who_have_much_are_learnt_from_and_nothing_is_calibrated_on_them(
    corpus, tmp_path, monkeypatch
):
    config = replace(COHORT, n=5, seed=3991, odds=20.0, form="truth", spacing_mm=SMALL.spacing_mm)
    rich = prepare_corpus(make_cohort(config, tmp_path / "many"), tmp_path / "rich", SMALL, workers=1)
    assert read_about(rich)["cohort"]["odds"] == 20
    usual, much = read_examples(corpus, "train"), read_examples(rich, "train")
    had = [sum(len(e.findings) for e in some) / len(some) for some in (usual, much)]
    assert had[1] > 1.5 * had[0]
    shown = []
    for stage in ("find_lesions", "learn"):
        monkeypatch.setattr(Trainer, stage, lambda self, train, *rest: shown.append([e.id for e in train]))
    training = replace(TRAIN, text_epochs=1, epochs=0)
    pretrain(corpus, tmp_path / "work", training, _model_config(positions=1024), rich=[rich])
    assert shown == [[example.id for example in (*usual, *much)]] * 2
    with pytest.raises(CheckpointError, match="other patients"):
        pretrain(corpus, tmp_path / "work", training, _model_config())
    for others, words in (({}, "20 times the usual odds"), ({"rich": [rich]}, "are in the corpus")):
        with pytest.raises(ConfigError, match=words):
            train_checkpoint(corpus, tmp_path / "other", tmp_path / "out", TRAIN, unseen=[rich], **others)
    assert not (tmp_path / "other").exists()
    fitted = []
    monkeypatch.setattr(
        "dapt.finish.refit_sizes", lambda model, learnt, unseen: fitted.append((learnt, unseen))
    )
    with_sizes(MLAModel(_model_config()), corpus, [rich])
    ((learnt, unseen),) = fitted
    assert [example.id for example in learnt] == [example.id for example in (*usual, *much)]
    assert not {example.id for example in unseen} & {example.id for example in learnt}
    told = training_card(MLAModel(_model_config()), corpus, tmp_path / "work", "python -m dapt", [rich])
    (row,) = (line for line in told.splitlines() if line.startswith("| trained on"))
    first, second = row.split("; ")
    assert f"| {len(usual)} phantoms of site a, from cohort " in first
    assert "odds" not in first
    assert second.startswith(f"{len(much)} phantoms of site a, from cohort 3991 ")
    assert second.endswith(", findings at 20 times their usual odds) |")


def test_a_trained_checkpoint_loads_and_explains_itself(corpus, tmp_path):
    model = pretrain(corpus, tmp_path / "work", TRAIN, _model_config())
    folder = finish(model, corpus, tmp_path / "work", tmp_path / "checkpoint", "python -m dapt", retest=2)
    again = load_checkpoint(folder)
    assert again.model.config.preprocessing["spacing_mm"] == 12.0
    assert (
        again.model.tokenizer("No emphysema.")["input_ids"] == model.tokenizer("No emphysema.")["input_ids"]
    )
    for (name, a), b in zip(model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3), name
    card = (folder / "README.md").read_text()
    assert "not a medical device" in card
    assert "macro F1" in card
    stored = load_file(folder / "model.safetensors")
    assert {v.dtype for v in stored.values()} <= {torch.float16, torch.int64}
    json.loads((folder / "calibration.json").read_text())


def test_the_surest_stay_apart_from_each_other_in_calibration(corpus):
    torch.manual_seed(0)
    model, few = MLAModel(_model_config()).eval(), read_examples(corpus, "train")[:2]
    model.tokenizer = train_tokenizer(["No emphysema."], model.config.vocab_size)
    model.config.preprocessing = SMALL.to_dict()
    with torch.no_grad():
        model.heads.presence.bias_FC += 28
    surest = predict(model, few).probability_NF
    # single precision has no number between these and 1
    assert (surest > 1 - 1e-8).all()
    assert (surest < 1).all()


def test_a_training_goes_on_from_a_checkpoint(corpus, tmp_path):
    first = pretrain(corpus, tmp_path / "work", TRAIN, _model_config())
    folder = finish(first, corpus, tmp_path / "work", tmp_path / "checkpoint", "python -m dapt", retest=2)
    short = replace(TRAIN, text_epochs=0, rounds=0, epochs=0)
    again = pretrain(corpus, tmp_path / "more", short, start=folder)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3), name
    assert again.tokenizer("肺气肿")["input_ids"] == first.tokenizer("肺气肿")["input_ids"]


def test_a_frozen_image_encoder_stays_as_it_was(corpus, tmp_path):
    first = pretrain(corpus, tmp_path / "work", replace(TRAIN, rounds=0, epochs=0), _model_config())
    folder = finish(first, corpus, tmp_path / "work", tmp_path / "checkpoint", "python -m dapt", retest=2)
    frozen = replace(TRAIN, text_epochs=0, rounds=0, patches=0, epochs=1, freeze_image_encoder=True, seed=7)
    model = pretrain(corpus, tmp_path / "more", frozen, _model_config(), image_encoder=folder)
    seen, new = load_checkpoint(folder).model.state_dict(), MLAModel(_model_config()).state_dict()
    changed = 0
    for name, value in model.state_dict().items():
        if name.startswith("image_encoder."):
            assert torch.equal(value, seen[name]), name
        else:
            changed += value.shape == new[name].shape and not torch.equal(value, seen[name])
    assert changed > 20


def test_every_fusion_is_trained_on_the_same_budget_and_stands_in_one_table(corpus, tmp_path, capsys):
    out = tmp_path / "ablation"
    wanted = [str(corpus), "--test", str(corpus), "--out", str(out), "--epochs", "1", "--limit", "4"]
    some = ["--fusion", "concat", "full", "--seeds", "0", "1"]
    assert ablate([*wanted, *some]) == 0
    table = (out / "ablation.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]]
    assert rows == ["concat", "full"]
    assert " to " in table  # what concat has above full, and how sure that is
    scores = json.loads((out / "ablation.json").read_text())
    assert [len(runs) for runs in scores.values()] == [2, 2]
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/state.safetensors")}
    assert len(trained) == 4
    assert ablate([*wanted, *some]) == 0
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*/state.safetensors")}
    capsys.readouterr()
    assert ablate([*wanted[:-1], "6", *some]) == 1
    assert "TRAINING_DIFFERS" in capsys.readouterr().err


def test_a_training_goes_on_in_voxels_of_half_the_size(corpus, tmp_path):
    """From the arrays of a cohort to a model that reads twice as many voxels along each axis."""
    voxels = replace(COHORT, spacing_mm=SMALL.spacing_mm / 2, form="truth")
    drawn = make_cohort(voxels, tmp_path / "cohort")
    assert not list(drawn.rglob("*.npy"))
    fine = prepare_corpus(drawn, tmp_path / "fine", SMALL.at(6.0), workers=1)
    first = pretrain(corpus, tmp_path / "work", replace(TRAIN, epochs=1), _model_config())
    folder = finish(first, corpus, tmp_path / "work", tmp_path / "one", "python -m dapt", retest=0)
    started = pretrain(
        fine, tmp_path / "none", replace(TRAIN, text_epochs=0, rounds=0, epochs=0), start=folder
    )
    assert torch.equal(started.heads.where.weight, load_checkpoint(folder).model.heads.where.weight)
    wider = (16, 8, 16, 16, 16)
    deeper = (1, *load_checkpoint(folder).model.config.units)
    config = replace(TRAIN, text_epochs=0, epochs=1, widths=wider, units=deeper)
    learnt = pretrain(fine, tmp_path / "more", config, start=folder)
    resumed = pretrain(fine, tmp_path / "more", config, start=folder)
    assert torch.equal(resumed.heads.where.weight, learnt.heads.where.weight)
    with pytest.raises(CheckpointError, match="other settings"):
        pretrain(fine, tmp_path / "more", replace(config, widths=()), start=folder)
    assert Preprocessing.from_dict(learnt.config.preprocessing) == SMALL.at(6.0)
    assert (tuple(learnt.config.widths), tuple(learnt.config.units)) == (wider, deeper)
    new = "image_encoder.stages.0.halve.conv.weight"
    assert not torch.allclose(learnt.state_dict()[new], started.state_dict()[new], atol=1e-5)


def test_a_training_does_not_go_on_with_a_model_of_other_images(cohort, corpus, tmp_path):
    model = pretrain(corpus, tmp_path / "work", replace(TRAIN, epochs=0), _model_config())
    folder = finish(model, corpus, tmp_path / "work", tmp_path / "checkpoint", "python -m dapt", retest=0)
    finer = prepare_corpus(cohort, tmp_path / "finer", replace(SMALL, spacing_mm=10.0), workers=1)
    with pytest.raises(CheckpointError, match="other images"):
        pretrain(finer, tmp_path / "more", TRAIN, start=folder)


def test_a_patch_holds_the_lesion_it_was_drawn_for_and_lies_where_it_says(corpus):
    """Same voxels at the same place in mm; of a lesion that is cut off nothing is said."""
    examples = read_examples(corpus, "train")
    keys = _model_config().finding_keys
    sampler = PatchSampler(examples, SMALL, keys, 16)
    rng = np.random.default_rng(0)
    patches = [sampler.draw(rng) for _ in range(20)]
    for patch in patches:
        whole, offset = np.load(patch.example.image), np.linalg.inv(patch.example.affine) @ patch.affine
        steps, start = np.diag(offset)[:3], offset[:3, 3]
        axes = [np.rint(a + step * np.arange(16)).astype(int) for a, step in zip(start, steps, strict=True)]
        np.testing.assert_array_equal(patch.image.numpy(), whole[np.ix_(*axes)])
    assert {tuple(np.sign(np.diag(p.affine)[:3])) for p in patches} != {(1, 1, 1)}
    targets = sampler.targets(patches)
    shown = [code in patch.example.boxes_mm for patch in patches for code in [patch.code]]
    drawn_for = [targets.presence_BF[b, keys.index(patch.code)] for b, patch in enumerate(patches)]
    assert np.mean([there == 1 for there, has in zip(drawn_for, shown, strict=True) if has]) > 0.8
    assert all(there == 0 for there, has in zip(drawn_for, shown, strict=True) if not has)
    assert 0.1 < 1 - np.mean(shown) < 0.7
    assert targets.presence_BF.isnan().any()
    too_large = [keys.index(code) for code in keys if code not in sampler.lesions]
    assert too_large
    assert targets.presence_BF[:, too_large].isnan().all()
    taught = ~targets.lesion_boxes_BFL23.isnan().flatten(3).any(-1).any(-1)
    assert (taught[targets.presence_BF == 0] == 0).all()


def test_what_is_taken_for_something_else_is_drawn_more_often(corpus):
    examples = read_examples(corpus, "train")
    keys = _model_config().finding_keys
    even = PatchSampler(examples, SMALL, keys, 16)
    hard, *easy = sorted(even.lesions)
    uneven = PatchSampler(examples, SMALL, keys, 16, {hard: 0.4} | dict.fromkeys(easy, 0.0))

    def share(sampler: PatchSampler) -> float:
        rng = np.random.default_rng(0)
        return float(np.mean([sampler.draw(rng).code == hard for _ in range(300)]))

    assert share(uneven) > 2 * share(even)
    rng = np.random.default_rng(0)
    assert {uneven.draw(rng).code for _ in range(600)} == set(even.lesions)  # none is forgotten


def test_the_map_of_a_patch_is_that_of_the_whole_image_there():
    """Places are those of the whole: a patch that is all of it has the same map, and knows where it is."""
    torch.manual_seed(0)
    model = MLAModel(_model_config()).eval()
    image, affine = torch.rand(1, 3, 32, 32, 32), torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))[None]
    present = torch.ones(1, 3, dtype=torch.bool)
    whole = model.encode(image, "", present, affine).lesions
    same = model.map_parts(image, present, affine, frame_of(image, affine))
    torch.testing.assert_close(same.logits_BFN, whole.logits_BFN)
    other = model.map_parts(image, present, affine, Frame((64, 64, 64), affine))
    assert not torch.allclose(other.logits_BFN, whole.logits_BFN)
