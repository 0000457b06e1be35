"""Evidence: a heat map that is small, masks without shape, and a finding that depends on what it cites."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from phantoms import volume_series

from mla_med.dicom.study import read_study
from mla_med.documents.html import draft_to_html
from mla_med.drafting import Options, draft_study
from mla_med.imaging.transforms import Preprocessing, hu_of, inside_body, window_channels
from mla_med.looking import Prepared, see, with_faithfulness
from mla_med.model.config import FUSION_TYPES, tiny
from mla_med.model.evidence import (
    Faithfulness,
    box_voxels,
    evidence_box,
    heat_map,
    masked,
    measure_faithfulness,
    random_regions,
    slices_in_box,
)
from mla_med.model.mla import MLAModel
from mla_med.model.seen import FindingOutputs
from mla_med.types import Evidence, Finding, Presence, Side


@pytest.fixture(scope="module", params=FUSION_TYPES)
def seen(request):
    """Of `hffn` and `full` a map of each finding says where, of the others the weights of its query."""
    torch.manual_seed(0)
    model = MLAModel(tiny(fusion_type=request.param)).eval()
    image = torch.rand(3, 32, 32, 32)
    affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    return model, see(Prepared.whole(image, affine), "61 years", model)


def test_the_heat_map_is_small_and_its_strongest_cell_is_one(seen):
    _, one = seen
    cells = heat_map(one.fused, one.outputs, 0)
    weights = [cell.weight for cell in cells]
    assert 1 <= len(cells) <= 64
    assert weights[0] == 1.0
    assert weights == sorted(weights, reverse=True)
    low, high = np.array(cells[0].box_mm)
    box = np.array(evidence_box(one.fused, one.outputs, 0))
    assert (low >= box[0] - 0.1).all()
    assert (high <= box[1] + 0.1).all()


def test_a_box_is_as_large_as_what_is_said_to_be_in_it(seen):
    _, one = seen
    small, grown = (np.array(evidence_box(one.fused, one.outputs, 0, size_mm=s)) for s in (None, 200.0))
    assert (grown[1] - grown[0] >= 200.0 - 1e-6).all()
    np.testing.assert_allclose(small.mean(0), grown.mean(0))


def test_a_mask_leaves_everything_else_and_is_made_of_what_lies_around():
    image = torch.rand(2, 20, 20, 20)
    image[1] = 1 - image[0]
    region = (slice(6, 12), slice(6, 12), slice(6, 12))
    image[:, 6:12, 6:12, 6:12] = 5.0
    filled = masked(image, region)
    assert (image[:, 8, 8, 8] == 5.0).all()  # the image itself is not touched
    inside = filled[:, 6:12, 6:12, 6:12]
    assert (inside <= 1).all()
    torch.testing.assert_close(inside[0] + inside[1], torch.ones(6, 6, 6))  # channels stay together
    assert inside[0].std() == pytest.approx(float(image[0][image[0] <= 1].std()), abs=0.05)
    filled[:, 6:12, 6:12, 6:12] = 5.0
    assert torch.equal(filled, image)
    assert torch.equal(masked(image, region), masked(image, region))


def test_a_mask_as_large_as_the_image_is_empty():
    assert (masked(torch.ones(1, 8, 8, 8), (slice(0, 8),) * 3) == 0).all()


def test_random_regions_are_as_large_in_the_body_and_clear_of_the_cited_one():
    body = np.zeros((30, 30, 30), bool)
    body[4:26, 4:26, 4:26] = True
    cited = (slice(8, 14), slice(8, 14), slice(8, 13))
    regions = random_regions(cited, body, 8)
    assert len(regions) == 8
    assert regions == random_regions(cited, body, 8)
    for region in regions:
        assert [s.stop - s.start for s in region] == [6, 6, 5]
        assert body[tuple((s.start + s.stop) // 2 for s in region)]
        assert any(a.stop <= b.start or a.start >= b.stop for a, b in zip(region, cited, strict=True))


def test_a_body_without_room_gives_no_rank():
    cited = (slice(0, 10),) * 3
    assert random_regions(cited, np.ones((10, 10, 10), bool), 4) == []
    assert Faithfulness(1.0, ()).rank is None
    assert Faithfulness(1.0, (0.5, 1.0, 2.0, 0.0)).rank == 0.625


def test_a_box_in_mm_becomes_its_voxels():
    affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    affine[:3, 3] = torch.tensor([-30.0, 0.0, 10.0])
    box = ((-9.0, 3.0, 10.0), (0.0, 9.0, 500.0))
    assert box_voxels(box, affine, (20, 20, 20)) == (slice(7, 11), slice(1, 4), slice(0, 20))


def test_masking_is_measured_against_the_logit_before(seen):
    model, one = seen
    logit = float(one.outputs.presence_logits_BF[0, 0])
    body = np.ones((32, 32, 32), bool)
    box = evidence_box(one.fused, one.outputs, 0)
    found = measure_faithfulness(model, one.image_CIJK, one.affine, one.context, 0, box, body, logit, 3)
    again = measure_faithfulness(model, one.image_CIJK, one.affine, one.context, 0, box, body, logit + 1, 3)
    assert again.fall == pytest.approx(found.fall + 1, abs=1e-5)
    assert len(found.random_falls) <= 3


@pytest.mark.parametrize("tilt_deg", [0, 2, 20])
def test_the_slice_through_a_lesion_is_cited_in_a_tilted_stack_too(tilt_deg):
    """Behind the middle, where the planes lie lower than the way from slice to slice says."""
    tilt = np.radians(tilt_deg)
    affine = np.eye(4)
    affine[:3, 1] = (0, np.cos(tilt), np.sin(tilt))
    affine[:3, 2] = (0, 0, 2.0)
    lesion = (affine @ (100, 20, 32, 1))[:3]
    box = tuple(map(tuple, np.array([lesion - 0.8, lesion + 0.8])))
    assert slices_in_box(box, affine, 64, (100.0, 130.0))[0] == 32


def test_the_windows_give_the_hu_back():
    settings = Preprocessing()
    hu = torch.linspace(-1300, 1250, 500).reshape(10, 10, 5)
    np.testing.assert_allclose(hu_of(window_channels(hu, settings.windows_hu), settings), hu, atol=0.1)


def test_lungs_are_inside_the_body():
    hu = np.full((20, 20, 4), -1000.0)
    hu[3:17, 3:17] = 40
    hu[6:10, 6:14] = -850
    body = inside_body(hu)
    assert body[8, 10].all()
    assert not body[0, 0].any()


def test_a_finding_of_the_packaged_model_depends_on_what_it_cites(checkpoint, phantom_study):
    """A phantom with one finding, so that little has to be masked."""
    folder = volume_series(phantom_study("pleural_effusion"))
    draft, volume = draft_study(read_study(folder), checkpoint, options=Options(faithfulness=True))
    present = [f for f in draft.report.findings if f.presence is Presence.PRESENT]
    assert [f.code for f in present] == ["pleural_effusion"]
    evidence = present[0].evidence
    assert evidence.faithfulness > 1
    assert evidence.faithfulness_rank == 1.0
    assert evidence.heat[0].weight == 1.0
    page = draft_to_html(draft, volume)
    assert "more than for 100 % of random regions" in page
    assert 'class="heat"' in page
    others = [f.evidence for f in draft.report.findings if f.presence is not Presence.PRESENT and f.evidence]
    assert all(e.faithfulness is None for e in others)


class Brightest:
    """A network that sees one finding, as strong as the brighter of two places: one lesion is enough."""

    config = SimpleNamespace(finding_keys=("consolidation",))
    boxes_mm = (((4.0, 4.0, 4.0), (8.0, 8.0, 8.0)), ((22.0, 22.0, 22.0), (26.0, 26.0, 26.0)))

    def looking(self):
        return nullcontext()

    def encode(self, images, text, present=None, affines=None):
        return np.asarray(images)

    def find(self, images):
        inside = [(slice(None), 0, *box_voxels(box, np.eye(4), images.shape[2:])) for box in self.boxes_mm]
        logits = 10 * np.max([images[at].mean((1, 2, 3)) for at in inside], axis=0)
        none = np.zeros((len(images), 1))
        return FindingOutputs(logits[:, None], *[none] * 7)


def test_of_two_lesions_each_is_what_the_finding_depends_on_without_the_other():
    model, image = Brightest(), np.zeros((1, 30, 30, 30), np.float32)
    for box in model.boxes_mm:
        image[(0, *box_voxels(box, np.eye(4), image.shape[1:]))] = 1.0
    seen = see(Prepared.whole(image, np.eye(4)), "", model)
    findings = [
        Finding("consolidation", side=side, evidence=Evidence(("1.2",), box))
        for side, box in zip((Side.LEFT, Side.RIGHT), model.boxes_mm, strict=True)
    ]
    for found in (findings, findings[:1]):
        measured = with_faithfulness(tuple(found), seen, model, np.ones((30, 30, 30), bool))
        falls = [finding.evidence.faithfulness for finding in measured]
        assert falls == pytest.approx([10.0] * 2 if len(found) == 2 else [0.0], abs=0.1)


def test_without_evidence_nothing_is_masked(seen):
    model, one = seen
    findings = (Finding("lung_nodule", Presence.ABSENT),)
    assert with_faithfulness(findings, one, model, np.ones((32, 32, 32), bool)) == findings
