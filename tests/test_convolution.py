"""What is done sooner at inference gives the numbers of what is differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mla_med.model.attention import MaskedTransformerBlock
from mla_med.model.config import tiny
from mla_med.model.convolution import OneDnnConv3d, convolve, use_onednn
from mla_med.model.image_encoder import ImageEncoder
from mla_med.model.mla import MLAModel


def with_statistics(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2)):
                nn.init.uniform_(values, low, high)
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module.eval()


@pytest.mark.parametrize("inside", [8, 24])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (1, 1, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_in_its_convolution_gives_the_same(inside, kernel, stride, padding, bias):
    torch.manual_seed(0)
    conv = nn.Conv3d(inside, 16, kernel, stride, padding, bias=bias)
    both = nn.Sequential(conv, with_statistics(nn.BatchNorm3d(16)))
    use_onednn(both)
    assert isinstance(conv, OneDnnConv3d)
    image = torch.randn(1, inside, 12, 10, 8)
    wanted = both(image)
    with torch.no_grad():
        got = convolve(conv, both[1], image)
    assert wanted.requires_grad
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted.detach(), atol=1e-5, rtol=1e-5)


def test_in_training_the_norm_stays_apart_and_learns():
    conv, norm = nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)
    use_onednn(conv)
    with torch.no_grad():
        convolve(conv, norm, torch.randn(2, 3, 5, 5, 5) + 3)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("units", [(1, 2, 1, 1), (0, 1, 1, 1)])
def test_an_encoder_sees_the_same_with_and_without_gradients(units):
    torch.manual_seed(1)
    encoder = with_statistics(ImageEncoder(2, (8, 8, 16, 24), units))
    use_onednn(encoder)
    image, present = torch.randn(1, 2, 33, 24, 32), torch.tensor([[True, False]])
    wanted = encoder(image, present)
    with torch.no_grad():
        got = encoder(image, present)
    for ours, theirs in zip(got, wanted, strict=True):
        scale = theirs.features_BDIJK.abs().max()
        assert (ours.features_BDIJK - theirs.features_BDIJK).abs().max() < 1e-5 * scale


def test_attention_counts_its_keys_the_same_with_and_without_gradients():
    torch.manual_seed(2)
    block = MaskedTransformerBlock(16, 4).eval()
    tokens = torch.randn(3, 9, 16)
    weights = torch.rand(3, 9)
    weights[0, 4:], weights[1] = 0, 0  # one patient of whom most is not there, and one of whom nothing is
    wanted = block(tokens, weights)
    with torch.no_grad():
        got = block(tokens, weights)
    assert not got.isnan().any()
    torch.testing.assert_close(got, wanted.detach(), atol=1e-5, rtol=1e-5)


def test_a_model_keeps_its_names_and_can_be_traced():
    config = tiny()
    model = MLAModel(config).eval().requires_grad_(False)
    assert any(isinstance(module, OneDnnConv3d) for module in model.modules())
    plain = ImageEncoder(config.channels, tuple(config.widths), tuple(config.units))
    assert [*plain.state_dict()] == [*model.image_encoder.state_dict()]
    image = torch.randn(1, config.channels, 32, 32, 32)
    present = torch.ones(1, config.channels, dtype=torch.bool)

    def finest(image: torch.Tensor) -> torch.Tensor:
        return model.image_encoder(image, present)[0].features_BDIJK

    with torch.no_grad():
        traced = torch.jit.trace(finest, image)
        assert "mkldnn_convolution" not in str(traced.inlined_graph)
        torch.testing.assert_close(traced(image), finest(image), atol=1e-4, rtol=1e-4)
