"""A model in bfloat16 -> the findings of float32 to a few hundredths, and of each patient the same alone and
among others."""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from evaluation.linter import random_findings
from mla_med.errors import ConfigError
from mla_med.model import CHECKPOINTS
from mla_med.model.config import FUSION_TYPES, tiny
from mla_med.model.generate import write_texts
from mla_med.model.mla import MLAModel
from mla_med.model.precision import patients_of, side_by_side
from mla_med.model.seen import of_patients, to_numpy
from mla_med.model.slots import report_slots

TEXTS = ["cough", "", "short of breath for two weeks"]
AFFINES = torch.diag(torch.tensor([-3.0, -3.0, 3.0, 1.0])).repeat(3, 1, 1)
AFFINES[:, :3, 3] = torch.tensor([187.5, 142.3, -901.7])


pytestmark = pytest.mark.usefixtures("seed_and_one_thread")


def a_model(**changes) -> MLAModel:
    """One whose findings differ between images, as those of a new model hardly do."""
    model = MLAModel(tiny(**changes)).eval()
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Three, of which the second lacks a channel."""
    present_BC = torch.ones(3, 3, dtype=torch.bool)
    present_BC[1, 2] = False
    return torch.randn(3, 3, 24, 20, 16), present_BC


@torch.no_grad()
def look(model, image, present, texts, affine):
    fused = model.encode(image, texts, present, affine)
    return fused, model.find(fused)


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_findings_in_bfloat16_are_the_same_alone_and_among_others(fusion_type, weights):
    """Weights in bfloat16, and weights in single precision under an autocast of the caller's."""
    model, (image, present) = a_model(fusion_type=fusion_type), some_images()
    _, wanted = look(model, image, present, TEXTS, AFFINES)
    model = model.to(weights)
    ours = torch.autocast("cpu", torch.bfloat16) if weights == torch.float32 else nullcontext()
    with ours:
        fused, together = look(model, image, present, TEXTS, AFFINES)
        for row in range(3):
            one = slice(row, row + 1)
            _, alone = look(model, image[one], present[one], TEXTS[one], AFFINES[one])
            for name in (
                "presence_logits_BF",
                "side_logits_BF3",
                "site_logits_BFT",
                "size_mm_BF",
                "position_BF3",
            ):
                torch.testing.assert_close(
                    getattr(alone, name)[0], getattr(together, name)[row], atol=1e-4, rtol=1e-4
                )
    assert together.presence_logits_BF.dtype == torch.float32
    assert together.evidence_BFS.shape[-1] == fused.tokens_BSD.shape[1]
    torch.testing.assert_close(together.evidence_BFS.sum(-1), wanted.evidence_BFS.sum(-1), atol=1e-2, rtol=0)
    off = (together.presence_logits_BF - wanted.presence_logits_BF).abs()
    # it is bfloat16, and it is the same model
    assert 0 < off.median() < 0.05 * wanted.presence_logits_BF.std()


def test_only_in_bfloat16_at_inference_does_each_go_alone():
    """Some processors cut a batch up by patients anyway and show no difference; so it is counted."""
    model, (image, present) = a_model(), some_images()
    seen: list[int] = []
    model.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    for weights, training, wanted in (
        (torch.float32, False, [3]),
        (torch.bfloat16, False, [1, 1, 1]),
        (torch.bfloat16, True, [3]),
    ):
        seen.clear()
        model.to(weights).train(training)
        model.find(model.encode(image, TEXTS, present, AFFINES))
        assert seen == wanted


def test_places_keep_their_millimetres():
    model, (image, present) = a_model(), some_images()
    one, _ = look(model, image, present, TEXTS, AFFINES)
    other, found = look(model.bfloat16(), image, present, TEXTS, AFFINES)
    levels = torch.isin(one.strides_BS[0], torch.tensor([16, 32]))
    assert levels.any()
    # tokens of whole levels; which of stride 8 are kept may differ
    assert torch.equal(one.positions_BS3[:, levels], other.positions_BS3[:, levels])
    wanted_BF3 = (found.evidence_BFS * other.located_BS[:, None]).double() @ other.positions_BS3.double()
    wanted_BF3 /= (found.evidence_BFS * other.located_BS[:, None]).double().sum(-1, keepdim=True)
    torch.testing.assert_close(found.position_BF3.double(), wanted_BF3, atol=0.2, rtol=0)


def test_weights_are_read_and_kept_in_bfloat16_and_vectors_are_not(tmp_path):
    a_model().save_pretrained(tmp_path)
    for model in (MLAModel.from_pretrained(tmp_path, dtype=torch.bfloat16), a_model().to(torch.bfloat16)):
        assert model.dtype == torch.bfloat16
        for name, values in model.named_parameters():
            assert values.dtype == (torch.float32 if values.ndim < 2 else torch.bfloat16), name
    assert model.float().dtype == torch.float32


def test_float16_is_refused_by_name():
    model, (image, present) = a_model().half(), some_images()
    with pytest.raises(ConfigError, match=r"float16.*bfloat16"):
        model.encode(image, TEXTS, present)


def test_a_model_in_bfloat16_learns_and_generates():
    model, (image, present) = a_model().bfloat16(), some_images()
    ids = torch.tensor([[1, 5, 6]] * 3)
    output = model.train()(TEXTS, image, present, input_ids=ids, labels=ids)
    output.loss.backward()
    learnt = [p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(learnt) > 50
    assert all(p.grad.isfinite().all() for p in learnt)
    written = model.eval().generate(image_BCIJK=image, text=TEXTS, max_new_tokens=6, min_new_tokens=6)
    assert written.shape == (3, 7)
    assert model.text_embedding_BD(["cough"]).shape == (1, model.config.width)


@torch.no_grad()
def test_words_in_bfloat16_are_the_same_alone_and_among_others():
    decoder = {"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 768}
    model, (image, present) = a_model(vocab_size=2048, decoder=decoder), some_images()
    for parameter in model.decoder.parameters():
        parameter.mul_(4)
    model, findings = (
        model.bfloat16(),
        [random_findings("chest_ct", random.Random(seed)) for seed in range(3)],
    )
    model.tokenizer = MLAModel.from_pretrained(CHECKPOINTS["chest_ct"]).tokenizer
    slots = [report_slots(f) for f in findings]
    fused, found = look(model, image, present, TEXTS, AFFINES)
    together = write_texts(model, fused, found, slots, score=True)
    for row, fused_1 in enumerate(patients_of(fused)):
        (alone,) = write_texts(model, fused_1, of_patients(found, [row]), slots[row : row + 1], score=True)
        assert alone == together[row]


def test_patients_of_unlike_length_lie_side_by_side_and_come_apart():
    model, (image, present) = a_model(), some_images()
    parts = [look(model, image[:1], present[:1], TEXTS[b : b + 1], AFFINES[:1])[0] for b in range(3)]
    lengths = [part.mask_BS.shape[1] for part in parts]
    assert len(set(lengths)) == 3
    batch = side_by_side(parts)
    assert batch.tokens_BSD.shape[:2] == (3, max(lengths))
    assert not batch.mask_BS[0, lengths[0] :].any()
    for part, again in zip(parts, patients_of(batch), strict=True):
        there = part.mask_BS[0]
        assert torch.equal(again.tokens_BSD[0], part.tokens_BSD[0, : int(there.nonzero()[-1]) + 1])
        assert torch.equal(again.lesions.logits_BFN, part.lesions.logits_BFN)


def test_numpy_gets_bfloat16_in_single_precision():
    x = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert to_numpy(x).dtype == np.float32
    assert to_numpy(x).tolist() == [1.5, -2.0]
