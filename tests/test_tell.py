"""A trained model -> the same findings, told where blobs and lines are, and it learns to listen."""

from __future__ import annotations

import pytest
import torch

from dapt.deepen import deepen
from dapt.finer import halve_voxels
from dapt.tell import tell
from dapt.widen import widen
from mla_med.errors import ConfigError
from mla_med.model.config import tiny
from mla_med.model.findings import FindingTargets
from mla_med.model.hessian import MAPS, SCALES, SHAPES, blobs_and_lines
from mla_med.model.mla import MLAModel

pytestmark = pytest.mark.usefixtures("seed_and_one_thread")

BRIGHT_BLOB, BRIGHT_LINE, DARK_BLOB, DARK_LINE = range(SHAPES)


def gaussian(axes: int, mm: float = 2.0, size: int = 24) -> torch.Tensor:
    """Of 3 axes a ball, of 2 a rod, of 1 a plate, in the middle."""
    grid_3IJK = torch.stack(torch.meshgrid(*[torch.arange(size) - size // 2] * 3, indexing="ij"))
    return torch.exp(-(grid_3IJK[:axes].float() ** 2).sum(0) / (2 * mm**2))


def told_of(image_IJK: torch.Tensor) -> torch.Tensor:
    """(scales, shapes) in the middle of the image."""
    maps = blobs_and_lines(image_IJK[None, None])[0].reshape(len(SCALES), SHAPES, *image_IJK.shape)
    middle = image_IJK.shape[0] // 2
    return maps[:, :, middle, middle, middle]


def a_trained_model(**changes) -> MLAModel:
    model = MLAModel(tiny(image_dim=(32, 32, 32), widths=(8, 8, 8, 16, 16), units=(1, 0, 1, 1, 1), **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    with torch.no_grad():
        for _ in range(3):
            model.image_encoder(torch.rand(2, 3, 32, 32, 32), torch.ones(2, 3))
    return model.eval()


def outputs_of(model: MLAModel, image: torch.Tensor):
    return model.find(model.encode(image, ["cough", ""], torch.tensor([[1, 1, 1], [1, 0, 1]])))


@pytest.mark.parametrize(
    ("axes", "dark", "shape"),
    [
        (3, False, BRIGHT_BLOB),
        (3, True, DARK_BLOB),
        (2, False, BRIGHT_LINE),
        (2, True, DARK_LINE),
        (1, False, None),
    ],
)
def test_a_ball_is_a_blob_and_a_rod_a_line_and_a_plate_is_neither(axes, dark, shape):
    there = gaussian(axes)
    told = told_of(1 - there if dark else there)
    wanted = torch.zeros(SHAPES, dtype=torch.bool)
    if shape is not None:
        wanted[shape] = True
    assert (told > 0.3).eq(wanted).all()
    assert told[:, ~wanted].abs().max() < 1e-3


@pytest.mark.parametrize("turn", [(2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_shapes_are_told_whichever_way_they_lie(turn):
    rod = gaussian(2)
    torch.testing.assert_close(told_of(rod.permute(turn)), told_of(rod))
    across = gaussian(3).permute(turn)
    torch.testing.assert_close(told_of(across), told_of(gaussian(3)))


def test_a_larger_ball_is_told_by_the_wider_look():
    small, large = (told_of(gaussian(3, mm))[:, BRIGHT_BLOB] for mm in (1.0, 4.0))
    assert small[0] / small[1] > 2 * large[0] / large[1]


def test_brightness_and_slopes_say_nothing():
    image = torch.arange(24.0)[:, None, None].expand(24, 24, 24) / 24 + 5
    # at the border the image ends
    assert blobs_and_lines(image[None, None])[..., 6:-6, 6:-6, 6:-6].abs().max() < 1e-2


@torch.no_grad()
def test_at_first_it_finds_what_it_found():
    model, image = a_trained_model(), torch.rand(2, 3, 32, 30, 27)
    told = tell(model, (0, 2))
    assert [conv.in_channels for conv in told.image_encoder.told] == [2 * MAPS] * 2
    one, other = outputs_of(model, image), outputs_of(told, image)
    for name in ("presence_logits_BF", "side_logits_BF3", "site_logits_BFT", "position_BF3", "size_mm_BF"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-6, rtol=1e-5)


def listening(model: MLAModel) -> MLAModel:
    for conv in model.image_encoder.told:
        torch.nn.init.normal_(conv.weight, std=0.5)
    return model


@torch.no_grad()
def test_it_is_told_of_its_channels_and_of_no_other():
    encoder, image = listening(tell(a_trained_model(), (1,))).image_encoder, torch.rand(2, 3, 32, 32, 32)
    before = encoder._told(image)
    assert sorted(before) == [2, 3]  # numbers of stages
    for channel in range(3):
        other = image.clone()
        other[:, channel] = torch.rand(2, 32, 32, 32)
        for stage, told in encoder._told(other).items():
            assert torch.equal(told, before[stage]) is (channel != 1)


@torch.no_grad()
def test_what_it_is_told_lies_where_the_blob_is():
    encoder = listening(tell(a_trained_model(), (0,))).image_encoder
    image = torch.zeros(1, 3, 64, 64, 64)
    # 6 voxels wide, in one eighth of the image
    grid_3IJK = torch.stack(torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij"))
    place = torch.tensor([50.0, 13.0, 34.0])
    image[0, 0] = torch.exp(-((grid_3IJK - place[:, None, None, None]) ** 2).sum(0) / 18)
    for stage, told in encoder._told(image).items():
        strength_IJK = told[0].abs().sum(0)
        strongest = torch.stack(torch.unravel_index(strength_IJK.argmax(), strength_IJK.shape))
        cell = 2**stage
        assert ((strongest * cell + cell / 2 - place).abs() <= cell).all()


@torch.no_grad()
def test_what_an_absent_channel_holds_tells_nothing():
    model, image = listening(tell(a_trained_model(), (1,))), torch.rand(2, 3, 32, 32, 32)
    strange = image.clone()
    strange[1, 1] = float("nan")  # of patient 1 it is absent
    before, after = outputs_of(model, image), outputs_of(model, strange)
    torch.testing.assert_close(before.presence_logits_BF, after.presence_logits_BF)


def test_it_learns_to_listen():
    told = tell(a_trained_model(), (0,)).train()
    presence = torch.zeros(2, len(told.config.finding_keys))
    presence[1] = 1
    told(None, torch.rand(2, 3, 32, 32, 32), targets=FindingTargets(presence)).loss.backward()
    for conv in told.image_encoder.told:
        assert conv.weight.grad.abs().amax((0, 2, 3, 4)).gt(0).any()


@torch.no_grad()
def test_a_model_that_is_told_still_deepens_and_widens():
    model, image = listening(tell(a_trained_model(), (0,))), torch.rand(2, 3, 32, 32, 32)
    before = outputs_of(model, image).presence_logits_BF
    for grown in (deepen(model, (1, 2, 1, 1, 1)), widen(model, (8, 16, 16, 16, 24))):
        assert tuple(grown.config.hessian) == (0,)
        torch.testing.assert_close(outputs_of(grown, image).presence_logits_BF, before, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_told_is_refused():
    model = a_trained_model()
    with pytest.raises(ConfigError, match="channels 0 to 2"):
        tell(model, (0, 3))
    with pytest.raises(ConfigError, match="not of 1, 1"):
        tell(model, (1, 1))
    with pytest.raises(ConfigError, match="told of the channels 0 already"):
        tell(tell(model, (0,)), (0, 1))
    with pytest.raises(ConfigError, match="resnet10 is not told"):
        tiny(backbone="resnet10", hessian=(0,))
    with pytest.raises(ConfigError, match="channels 0 to 2"):
        tiny(hessian=(5,))
    with pytest.raises(ConfigError, match="Halve first"):
        halve_voxels(tell(model, (0,)), torch.rand(1, 3, 32, 32, 32))


def test_it_survives_its_folder(tmp_path):
    told = listening(tell(a_trained_model(), (0, 1)))
    told.save_pretrained(tmp_path)
    again = MLAModel.from_pretrained(tmp_path).eval()
    image = torch.rand(1, 3, 32, 32, 32)
    with torch.no_grad():
        one, other = (each.find(each.encode(image, ["cough"])) for each in (told, again))
    torch.testing.assert_close(one.presence_logits_BF, other.presence_logits_BF)
