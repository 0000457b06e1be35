"""A trained model -> the same findings from more channels, and all of them learn."""

from __future__ import annotations

import pytest
import torch

from dapt.finer import halve_voxels
from dapt.widen import widen
from mla_med.errors import ConfigError
from mla_med.model.config import FUSION_TYPES, tiny
from mla_med.model.findings import FindingTargets
from mla_med.model.mla import MLAModel

pytestmark = pytest.mark.usefixtures("seed_and_one_thread")

WIDER = (8, 16, 24, 16)
IMAGE = torch.zeros(1, 3, 16, 16, 16)


def a_trained_model(**changes) -> MLAModel:
    model = MLAModel(tiny(image_dim=(32, 32, 32), **changes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        for _ in range(3):
            model.image_encoder(torch.randn(2, 3, 32, 32, 32), torch.ones(2, 3))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSION_TYPES)
@pytest.mark.parametrize("training", [False, True])
def test_it_finds_what_it_found(fusion, training):
    model = a_trained_model(fusion_type=fusion)
    wider = widen(model, WIDER)
    assert tuple(wider.config.widths) == WIDER
    image = torch.randn(2, 3, 32, 32, 32)
    outputs = []
    for each in (model, wider):
        each.image_encoder.train(training)  # with the statistics of the batch, too
        outputs.append(each.find(each.encode(image, ["cough", ""])))
    one, other = outputs
    assert one.presence_logits_BF.std() > 0.02
    for name in ("presence_logits_BF", "side_logits_BF3", "site_logits_BFT", "position_BF3", "size_mm_BF"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-4)


def test_every_new_channel_learns():
    wider = widen(a_trained_model(), WIDER).train()
    before = {name: p.detach().clone() for name, p in wider.image_encoder.named_parameters()}
    optimizer = torch.optim.AdamW(wider.parameters(), 1e-3, weight_decay=0)
    presence = torch.zeros(2, len(wider.config.finding_keys))
    presence[1] = 1
    for _ in range(3):  # what they see is learnt once somebody listens
        loss = wider(None, torch.randn(2, 3, 32, 32, 32), targets=FindingTargets(presence)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for number in (1, 2):
        name = f"stages.{number}.halve.conv.weight"
        new = dict(wider.image_encoder.named_parameters())[name] - before[name]
        assert (new.flatten(1).abs().sum(1) > 0).all()


def test_the_same_seed_gives_the_same_weights_and_disturbs_nobody():
    model = a_trained_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = widen(model, WIDER).state_dict(), widen(model, WIDER).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("widths", [(8, 16, 24), (8, 8, 8, 16), ()])
def test_other_stages_or_fewer_channels_are_refused(widths):
    with pytest.raises(ConfigError, match="8, 8, 16, 16 channels"):
        widen(a_trained_model(), widths)


@pytest.mark.parametrize(
    "grow", [lambda model: widen(model, WIDER), lambda model: halve_voxels(model, IMAGE)]
)
@pytest.mark.parametrize("change", [{"backbone": "resnet10"}, {"pruned": {"heads.where": [16, 6]}}])
def test_an_encoder_of_another_kind_is_refused(change, grow):
    model = a_trained_model()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ConfigError, match="image encoder"):
        grow(model)
