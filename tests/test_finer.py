"""A trained model -> the same findings in voxels of half the size, and more that it can learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dapt.finer import halve_voxels, is_half
from dapt.growth import stages_of
from dapt.objectives.volume import MaskedVolume
from mla_med.imaging.grid import BRAIN_MR, CHEST_CT, Preprocessing
from mla_med.model.config import tiny
from mla_med.model.findings import FindingTargets
from mla_med.model.mla import MLAModel

COARSE = Preprocessing(shape=(32, 24, 40), spacing_mm=3.0)
AFFINE = torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0]))[None]
AFFINE[:, :3, 3] = torch.tensor([-40.0, 12.0, 7.5])


pytestmark = pytest.mark.usefixtures("seed_and_one_thread")


def a_trained_model() -> MLAModel:
    """Its norms have seen images, its gates are open to different degrees, and its findings differ."""
    model = MLAModel(tiny(image_dim=COARSE.shape, preprocessing=COARSE.to_dict()))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        for _ in range(3):
            model.image_encoder(coarse_of(fine_images()), torch.ones(2, 3))
    return model.eval()


def fine_images(batch=2) -> torch.Tensor:
    smooth = F.interpolate(torch.rand(batch, 3, 8, 6, 10), (64, 48, 80), mode="trilinear")
    return smooth + 0.1 * torch.randn(batch, 3, 64, 48, 80)


def coarse_of(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool3d(image, 2)


def coarse_affine() -> torch.Tensor:
    affine = AFFINE.clone()
    affine[:, :3, :3] *= 2
    affine[:, :3, 3] += AFFINE[:, :3, :3].sum(-1) / 2
    return affine


@torch.no_grad()
def test_it_finds_in_fine_images_what_it_found_in_their_means():
    model, image = a_trained_model(), fine_images()
    finer = halve_voxels(model, fine_images())
    present = torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    one = model.encode(coarse_of(image), ["cough", ""], present, coarse_affine().repeat(2, 1, 1))
    other = finer.encode(image, ["cough", ""], present, AFFINE.repeat(2, 1, 1))
    wanted, found = model.find(one), finer.find(other)
    assert wanted.presence_logits_BF.std() > 0.05
    for name in ("presence_logits_BF", "side_logits_BF3", "site_logits_BFT", "position_BF3", "size_mm_BF"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(other.lesions.logits_BFN, one.lesions.logits_BFN, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(other.lesions.positions_BN3, one.lesions.positions_BN3)
    assert finer.config.cell == 2 * model.config.cell == 8
    assert is_half(Preprocessing.from_dict(finer.config.preprocessing), COARSE)


def test_what_lies_within_a_cell_is_not_seen_at_first_and_can_be_learnt():
    """A pattern whose mean over every coarse voxel is zero."""
    model = a_trained_model()
    finer = halve_voxels(model, fine_images())
    checks = torch.ones(64, 48, 80)
    checks[::2] *= -1
    image = fine_images()
    with torch.no_grad():
        one, other = (finer.find(finer.encode(x)).presence_logits_BF for x in (image, image + checks))
    torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)
    presence = torch.zeros(2, len(finer.config.finding_keys))
    presence[1, 0] = 1.0
    both = torch.stack([image[0], image[0] + checks])
    optimizer = torch.optim.AdamW(finer.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        loss = finer(None, both, targets=FindingTargets(presence)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logit = finer.find(finer.encode(both)).presence_logits_BF[:, 0]
    assert logit[1] - logit[0] > 1
    assert losses[-1] < losses[0] / 2


def test_five_stages_learn_from_hidden_voxels_and_every_weight_of_them_learns():
    finer = halve_voxels(a_trained_model(), fine_images()).train()
    image = fine_images()
    volume = MaskedVolume(finer.config)
    guessed = volume.guess(finer, image, torch.ones(2, 3).bool())
    assert guessed.shape == image.shape
    (guessed - image).abs().mean().backward()
    names = [n for n, p in finer.image_encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # the gate of the new stage opens first, then what it looks at
    assert all(name.startswith("stages.0.gate.gates.0") for name in names)


def test_a_new_model_of_such_voxels_has_the_same_stages():
    for settings in (CHEST_CT, BRAIN_MR):
        fine = settings.at(settings.spacing_mm / 2)
        grown = halve_voxels(
            MLAModel(tiny(channels=settings.channels, preprocessing=settings.to_dict())),
            torch.rand(1, settings.channels, 16, 16, 16),
        )
        begun = stages_of(fine)
        assert (begun["widths"][0], begun["units"][0]) == (grown.config.widths[0], grown.config.units[0])
        assert len(begun["widths"]) == 5
        assert len(stages_of(settings)["widths"]) == 4


def test_half_the_voxels_is_the_same_region():
    fine = Preprocessing(shape=(256, 192, 224), spacing_mm=1.5)
    assert is_half(fine, CHEST_CT)
    assert not is_half(CHEST_CT, CHEST_CT)
    assert not is_half(fine, BRAIN_MR)
