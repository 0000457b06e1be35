"""A MONAI network as the image encoder, with weights from a local file."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.resnet import ResNetFeatures
from safetensors.torch import save_file

from mla_med.errors import CheckpointError, ConfigError
from mla_med.model.config import tiny
from mla_med.model.image_encoder import MonaiResNet, between_corners, read_backbone
from mla_med.model.mla import MLAModel


def a_model() -> MLAModel:
    torch.manual_seed(0)
    return MLAModel(tiny(backbone="resnet10")).eval()


def published(channels: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return ResNetFeatures("resnet10", pretrained=False, in_channels=channels).state_dict()


def test_the_whole_model_runs_on_a_monai_backbone(tmp_path):
    model = a_model()
    image = torch.rand(2, 3, 32, 48, 32)
    output = model(["cough", ""], image)
    assert output.findings.presence_logits_BF.isfinite().all()
    model.save_pretrained(tmp_path)
    again = MLAModel.from_pretrained(tmp_path).eval()
    assert isinstance(again.image_encoder, MonaiResNet)
    torch.testing.assert_close(
        again(["cough", ""], image).findings.presence_logits_BF, output.findings.presence_logits_BF
    )


def test_the_invariants_hold_on_a_monai_backbone():
    """A patient changes nobody else, an absent window full of NaN changes nothing, every gate learns."""
    model = MLAModel(tiny(backbone="resnet10", modality_dropout=(0.0, 0.0))).eval()
    image, present = torch.rand(2, 3, 32, 32, 32), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()

    def said(images: torch.Tensor) -> torch.Tensor:
        return model(["cough", ""], images, present_BC=present).findings.presence_logits_BF

    with torch.no_grad():
        before = said(image)
        other, spoilt = image.clone(), image.clone()
        other[1] = torch.rand(3, 32, 32, 32)
        spoilt[1, 2] = torch.nan
        after = said(other)
        torch.testing.assert_close(after[0], before[0])
        assert not torch.allclose(after[1], before[1])
        torch.testing.assert_close(said(spoilt), before)
        alone = model(["cough"], image[:1], present_BC=present[:1]).findings.presence_logits_BF
        torch.testing.assert_close(alone, before[:1], atol=1e-4, rtol=1e-4)
    model.train()
    said(image).square().sum().backward()
    for gate in model.image_encoder.gates:
        assert all(float(weights.grad.abs().sum()) > 0 for weights in gate.parameters())
    assert float(model.image_encoder.presence.weight.grad.abs().sum()) > 0


def test_levels_have_the_strides_and_widths_of_the_network():
    levels = a_model().image_encoder(torch.rand(1, 3, 40, 33, 32), torch.ones(1, 3, dtype=torch.bool))
    assert [tuple(level.features_BDIJK.shape[1:]) for level in levels] == [
        (64, 10, 9, 8),
        (128, 5, 5, 4),
        (256, 3, 3, 2),
    ]


def test_a_cell_sees_what_lies_in_it():
    encoder = a_model().image_encoder
    present = torch.ones(1, 3, dtype=torch.bool)
    plain = torch.zeros(1, 3, 64, 64, 64)
    spot = plain.clone()
    spot[:, :, 40:48, 24:32, 16:24] = 5.0  # the cell (5, 3, 2) of stride 8
    with torch.no_grad():
        before, after = (encoder(x, present)[1].features_BDIJK for x in (plain, spot))
    change = (after - before).abs().sum(1)[0]
    weights = change / change.sum()
    centre = [
        float((weights.sum([a for a in range(3) if a != axis]) * torch.arange(8)).sum()) for axis in range(3)
    ]
    assert centre == pytest.approx([5, 3, 2], abs=0.6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_weights_of_one_channel_are_spread_over_three(tmp_path, suffix):
    path, weights = tmp_path / f"weights{suffix}", published()
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    else:
        save_file(weights, path)
    encoder = a_model().image_encoder
    assert read_backbone(encoder, path) == len(encoder.net.state_dict())
    grey = torch.rand(1, 1, 16, 16, 16)
    three = encoder.net.conv1(grey.expand(-1, 3, -1, -1, -1))
    one = torch.nn.functional.conv3d(grey, weights["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(three, one, atol=1e-5, rtol=1e-4)


def test_with_published_weights_every_level_is_that_of_the_published_network(tmp_path):
    """A gate within the stream, or a bias for presence, would leave the norms' statistics of another one."""
    theirs = ResNetFeatures("resnet10", pretrained=False, in_channels=3)
    torch.manual_seed(6)
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            value.uniform_(0.2, 1.5)
    save_file(
        {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}, tmp_path / "w.safetensors"
    )
    encoder = a_model().image_encoder
    read_backbone(encoder, tmp_path / "w.safetensors")
    ungated: list[torch.Tensor] = []
    for gate in encoder.gates:
        gate.register_forward_pre_hook(lambda _, given: ungated.append(given[0]))
    image = torch.rand(1, 3, 48, 32, 64)
    with torch.no_grad():
        encoder(image, torch.ones(1, 3, dtype=torch.bool))
        wanted = theirs.eval()(image)[1:4]
    for ours, level in zip(ungated, wanted, strict=True):
        torch.testing.assert_close(ours, between_corners(level), atol=1e-4, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 1, 7, 7, 7)}, path)
    with pytest.raises(CheckpointError, match=r"weights.safetensors does not fit: it lacks \d+ of \d+"):
        read_backbone(a_model().image_encoder, path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        read_backbone(a_model().image_encoder, path)
    with pytest.raises(CheckpointError, match="Is the path right"):
        read_backbone(a_model().image_encoder, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="No backbone 'resnet9'; there are: resnet10"):
        tiny(backbone="resnet9")


def test_a_file_that_runs_code_is_not_read(tmp_path):
    import pickle

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_backbone(a_model().image_encoder, path)
