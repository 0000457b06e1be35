"""Training: resumable to the bit, split by patient, and its checkpoint drafts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dapt.corpus import CorpusConfig, prepare_corpus, read_examples
from dapt.finish import finish
from dapt.train import TrainConfig, pretrain, report_ids, targets_of
from mla_med.errors import CheckpointError, ConfigError, StudyError
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import SIDES, tiny

SMALL = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
CONFIG = CorpusConfig(train=6, validation=3, test=2, seed=7, workers=1, preprocessing=SMALL)
TRAIN = TrainConfig(text_epochs=1, epochs=2, batch=3)


def _model_config():
    sizes = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 384}
    return tiny(vocab_size=1024, decoder=sizes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare_corpus(CONFIG, tmp_path_factory.mktemp("corpus"))


def test_no_patient_is_in_two_splits(corpus):
    ids = [e.id for split in ("train", "validation", "test") for e in read_examples(corpus, split)]
    assert len(ids) == len(set(ids)) == 11


def test_an_image_that_is_there_is_not_made_again(corpus):
    images = sorted((corpus / "images").glob("*.npy"))
    stamps = [p.stat().st_mtime_ns for p in images]
    images[0].unlink()
    (corpus / "images" / images[0].name.replace(".npy", ".json")).unlink()
    prepare_corpus(CONFIG, corpus)
    after = [p.stat().st_mtime_ns for p in images]
    assert after[1:] == stamps[1:]
    assert after[0] != stamps[0]


def test_a_missing_corpus_says_so(tmp_path):
    with pytest.raises(StudyError, match=r"train\.jsonl is missing"):
        read_examples(tmp_path, "train")


def test_images_are_hu_on_the_models_grid(corpus):
    example = read_examples(corpus, "train")[0]
    hu = np.load(example.image)
    assert hu.shape == SMALL.shape
    assert hu.dtype == np.int16
    assert hu.min() < -900
    assert np.abs(np.diag(example.affine)[:3]) == pytest.approx(12.0, abs=1e-3)


def test_targets_are_what_was_planted(corpus):
    examples = read_examples(corpus, "train")
    config = _model_config()
    targets = targets_of(examples, config)
    for b, example in enumerate(examples):
        assert int(targets.presence_BF[b].sum()) == len(example.findings)
        for finding in example.findings:
            f = config.finding_keys.index(finding.code)
            side = targets.side_BF[b, f]
            assert (SIDES[side] if side >= 0 else None) == finding.side
            assert not targets.lesion_box_BF23[b, f].isnan().any()


def test_padding_teaches_nothing():
    from dapt.tokenizer import train_tokenizer

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
    pretrain(corpus, tmp_path, TrainConfig(text_epochs=1, epochs=0), _model_config())
    with pytest.raises(CheckpointError, match="other settings"):
        pretrain(corpus, tmp_path, TrainConfig(text_epochs=1, epochs=0, lr=1.0), _model_config())


def test_a_trained_checkpoint_loads_and_explains_itself(corpus, tmp_path):
    model = pretrain(corpus, tmp_path / "work", TRAIN, _model_config())
    folder = finish(model, corpus, tmp_path / "work", tmp_path / "checkpoint", "python -m dapt")
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


@pytest.mark.parametrize("wrong", [{"seed": 9}, {"seed": 0}, {"train": 20_001}])
def test_no_corpus_can_hold_a_patient_of_another_split_or_of_the_acceptance_test(wrong):
    with pytest.raises(ConfigError, match="would share"):
        CorpusConfig(**wrong)
