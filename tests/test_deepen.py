"""A trained model -> the same findings from more convolutions, and all of them learn."""

from __future__ import annotations

import pytest
import torch

from dapt.deepen import deepen
from mla_med.errors import ConfigError
from mla_med.model.config import tiny
from mla_med.model.findings import FindingTargets
from mla_med.model.mla import MLAModel

pytestmark = pytest.mark.usefixtures("seed_and_one_thread")

WIDTHS = (8, 8, 8, 16, 16)
BEFORE = (0, 0, 0, 1, 1)
"""To the second it is added which channels are absent; the third is a level."""


def a_trained_model(**changes) -> MLAModel:
    model = MLAModel(tiny(image_dim=(32, 32, 32), widths=WIDTHS, units=BEFORE, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    with torch.no_grad():
        for _ in range(3):
            model.image_encoder(torch.randn(2, 3, 32, 32, 32), torch.ones(2, 3))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "units", [BEFORE, (1, 0, 0, 1, 1), (0, 2, 0, 1, 1), (0, 0, 1, 1, 1), (3, 2, 1, 1, 1)]
)
def test_it_finds_what_it_found(units):
    model = a_trained_model()
    deeper = deepen(model, units)
    assert tuple(deeper.config.units) == units
    image, present = torch.randn(2, 3, 32, 32, 32), torch.tensor([[1, 1, 1], [1, 0, 1]])
    outputs, levels = [], []
    for each in (model, deeper):
        levels.append(each.image_encoder(image, present))
        outputs.append(each.find(each.encode(image, ["cough", ""], present)))
    for one, other in zip(*levels, strict=True):
        assert one.features_BDIJK.std() > 0.01
        torch.testing.assert_close(one.features_BDIJK, other.features_BDIJK, atol=1e-5, rtol=1e-4)
    one, other = outputs
    for name in ("presence_logits_BF", "side_logits_BF3", "site_logits_BFT", "position_BF3", "size_mm_BF"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_with_the_statistics_of_the_batch_too():
    """One convolution more: it sees what the norm in front of it has evened out."""
    model = a_trained_model()
    deeper = deepen(model, (1, 0, 0, 1, 1))
    image, present = torch.randn(2, 3, 64, 64, 64), torch.ones(2, 3)
    for one, other in zip(
        model.image_encoder.train()(image, present), deeper.image_encoder.train()(image, present), strict=True
    ):
        torch.testing.assert_close(one.features_BDIJK, other.features_BDIJK, atol=1e-4, rtol=1e-3)


def test_every_tap_learns():
    deeper = deepen(a_trained_model(), (1, 0, 0, 1, 1)).train()
    name = "stages.0.refine.conv.unit0.conv.weight"
    weight = dict(deeper.image_encoder.named_parameters())[name]
    before = weight.detach().clone()
    presence = torch.zeros(2, len(deeper.config.finding_keys))
    presence[1] = 1
    optimizer = torch.optim.AdamW(deeper.parameters(), 1e-3, weight_decay=0)
    deeper(None, torch.randn(2, 3, 32, 32, 32), targets=FindingTargets(presence)).loss.backward()
    optimizer.step()
    assert (weight - before).abs().amin((0, 1)).gt(0).all()


@pytest.mark.parametrize("units", [(1, 0, 0, 1), (1, 0, 0, 2, 1), (0, 0, 0, 0, 1), (-1, 0, 0, 1, 1), ()])
def test_other_stages_or_other_convolutions_are_refused(units):
    with pytest.raises(ConfigError, match="0, 0, 0, 1, 1 convolutions"):
        deepen(a_trained_model(), units)


@pytest.mark.parametrize("change", [{"backbone": "resnet10"}, {"pruned": {"heads.where": [16, 6]}}])
def test_an_encoder_of_another_kind_is_refused(change):
    model = a_trained_model()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ConfigError, match="image encoder"):
        deepen(model, (1, 0, 0, 1, 1))
