"""StudyReader in real MONAI pipelines: what MONAI's PydicomReader makes of a broken folder without a
word, beside what ours does with it."""

import pickle
import shutil
import traceback

import nibabel
import numpy as np
import pytest
import torch
from dicom_series import COLUMNS, MR_CLASS, PACKAGED, ROWS, anatomy, write_series
from monai.data import DataLoader, Dataset, MetaTensor, PersistentDataset, PydicomReader, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    Orientationd,
    SaveImage,
    Spacingd,
)

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import ConfigError, MlaMedError, SeriesError, StudyError
from mla_med.imaging.reader import StudyReader

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")

HEIGHTS_MM = [0, 2, 4, 6, 8]
SOUND = [[-0.7, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]]
CORONAL = [1, 0, 0, 0, 0, -1]
MR = {"Modality": "MR", "SOPClassUID": MR_CLASS, "RescaleIntercept": 0}


def ours(path, **choice):
    return LoadImaged(keys="image", reader=StudyReader(**choice))({"image": path})["image"]


def pydicom_readers(path):
    # Given at run time, so that LoadImage tries no other one.
    return LoadImaged(keys="image")({"image": path}, reader=PydicomReader())["image"]


def refusal(path, **choice):
    with pytest.raises(MlaMedError) as error:
        ours(path, **choice)
    assert "\n" not in str(error.value)
    return error.value


def step_mm(image):
    return round(float(torch.linalg.norm(image.affine[:3, 2])), 3)


def is_sound(image):
    return image.shape == (COLUMNS, ROWS, 5) and np.allclose(image.affine, SOUND, atol=1e-12)


# The traps of MONAI's reader, each beside it falling in


def test_two_series_in_a_folder_are_not_interleaved(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(tmp_path, HEIGHTS_MM, series=2, stored=lambda k: anatomy(k) + 100)
    theirs = pydicom_readers(tmp_path)
    assert (theirs.shape, step_mm(theirs)) == ((COLUMNS, ROWS, 10), 0.889)

    error = refusal(tmp_path)
    assert isinstance(error, SeriesError)
    assert error.code == "SEVERAL_SERIES"
    assert '1 "series 1" (CT, 5 images, 2.25.1); 2 "series 2" (CT, 5 images, 2.25.2).' in str(error)

    second = ours(tmp_path, series_uid="2.25.2")
    assert is_sound(second)
    assert second[0, 0].tolist() == [-900, -899, -898, -897, -896]


def test_instance_numbers_out_of_spatial_order_do_not_matter(tmp_path):
    write_series(tmp_path, [4, 0, 8, 2, 6])
    theirs = pydicom_readers(tmp_path)
    assert step_mm(theirs) == 0.5
    assert theirs[0, 0].tolist() == [-1000, -999, -998, -997, -996]

    image = ours(tmp_path)
    assert is_sound(image)
    assert image[0, 0].tolist() == [-999, -997, -1000, -996, -998]


def test_missing_slices_are_refused(tmp_path):
    write_series(tmp_path, [0, 2, 4, 6, 12, 14, 16, 18])
    theirs = pydicom_readers(tmp_path)
    assert (theirs.shape[2], step_mm(theirs)) == (8, 2.571)

    error = refusal(tmp_path)
    assert error.code == "MISSING_SLICE"
    assert "Slice gap of 6.00 mm after slice 4 of 8; the others are 2.00 mm apart" in str(error)


def test_an_instance_sent_twice_is_taken_once(tmp_path):
    shutil.copy(write_series(tmp_path, HEIGHTS_MM)[2], tmp_path / "again")
    theirs = pydicom_readers(tmp_path)
    assert (theirs.shape[2], step_mm(theirs)) == (6, 1.6)

    image = ours(tmp_path)
    assert is_sound(image)
    assert image.meta["certificate"]["duplicates_dropped"] == 1


def test_a_localizer_in_the_folder_leaves_the_affine_regular(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    localizer = {"ImageOrientationPatient": CORONAL, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path, [20], series=2, InstanceNumber=0, **localizer)
    theirs = pydicom_readers(tmp_path)
    assert float(torch.linalg.det(theirs.affine)) == 0

    image = ours(tmp_path)
    assert is_sound(image)
    assert image.meta["refused"] == "LOCALIZER"


def test_two_b_values_under_one_uid_are_not_stacked(tmp_path):
    write_series(tmp_path, HEIGHTS_MM * 2, DiffusionBValue=lambda k: 0.0 if k < 5 else 1000.0, **MR)
    theirs = pydicom_readers(tmp_path)
    assert (theirs.shape[2], step_mm(theirs)) == (10, 0.889)

    error = refusal(tmp_path, series_uid="2.25.1")
    assert error.code == "SEVERAL_SERIES"
    assert '1 "series 1 b 0" (MR, 5 images, 2.25.1); 2 "series 1 b 1000" (MR, 5 images, 2.25.1).' in str(
        error
    )

    image = ours(tmp_path, part="b 1000")
    assert step_mm(image) == 2.0
    assert image[0, 0].tolist() == [29, 30, 31, 32, 33]


def test_gantry_tilt_is_stated(tmp_path):
    orientation = [1, 0, 0, 0, 0.965926, 0.258819]  # 15 degrees
    write_series(tmp_path, HEIGHTS_MM, ImageOrientationPatient=orientation)
    theirs = pydicom_readers(tmp_path)
    cosine = float(theirs.affine[:3, 1] @ theirs.affine[:3, 2]) / 0.8 / 2
    assert cosine == pytest.approx(0.259, abs=1e-3)
    assert not [key for key in theirs.meta if "tilt" in key]

    certificate = ours(tmp_path).meta["certificate"]
    assert certificate["tilt_deg"] == 15.0
    assert "Gantry tilt of 15.0 degrees, kept as shear in the affine." in certificate["notes"]


def test_decimal_strings_that_are_too_long_keep_their_meaning(tmp_path):
    long = ["0.99999999999999999999", "0", "0", "0", "0.99999999999999999999", "0"]
    write_series(tmp_path, HEIGHTS_MM, ImageOrientationPatient=long)
    with pytest.warns(UserWarning, match="ImageOrientationPatient"):
        theirs = pydicom_readers(tmp_path)
    assert theirs.affine.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

    assert is_sound(ours(tmp_path))


def test_rescale_slopes_of_each_slice_are_applied(tmp_path):
    """PydicomReader does so too; this holds ours to it."""
    slopes = [1.0, 2.0, 0.5, 1.5, 3.0]
    constant = {"stored": lambda k: np.full((ROWS, COLUMNS), 100), "RescaleSlope": lambda k: slopes[k]}
    write_series(tmp_path, HEIGHTS_MM, **MR, **constant)
    image = ours(tmp_path)
    assert image[0, 0].tolist() == [100, 200, 50, 150, 300]
    assert torch.equal(image.as_tensor(), pydicom_readers(tmp_path).as_tensor())


def test_a_first_slice_of_whole_numbers_does_not_set_the_type(tmp_path):
    """The trap of MONAI Deploy's operator, which allocates by the first slice; PydicomReader has it not."""
    values = {"stored": lambda k: np.full((ROWS, COLUMNS), 3 - 2 * k), "RescaleSlope": lambda k: 0.5**k}
    write_series(tmp_path, HEIGHTS_MM, **MR, **values)
    image = ours(tmp_path)
    assert image[0, 0].tolist() == [3.0, 0.5, -0.25, -0.375, -0.3125]
    assert torch.equal(image.as_tensor(), pydicom_readers(tmp_path).as_tensor())


# Which series


def test_the_series_of_an_examination_is_chosen(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1, ConvolutionKernel="B70f")
    write_series(tmp_path, HEIGHTS_MM, series=2, ConvolutionKernel="B31f")
    write_series(tmp_path, [0, 2, 4, 8, 10], series=3, ConvolutionKernel="B31f")
    image = ours(tmp_path, examination="chest_ct")
    assert image.meta["series_uid"] == "2.25.2"
    assert image.meta["refused"] == "MISSING_SLICE"


def test_one_of_the_series_that_an_examination_wants_is_chosen_by_its_role(tmp_path):
    head = MR | {"BodyPartExamined": "HEAD", "SliceThickness": 5}
    heights_mm = [5 * k for k in range(25)]
    write_series(tmp_path, heights_mm, series=1, SeriesDescription="t2_tse_tra", **head)
    write_series(tmp_path, heights_mm, series=2, SeriesDescription="t2_flair_tra", **head)
    assert refusal(tmp_path, examination="brain_mr").code == "SEVERAL_SERIES"
    flair = ours(tmp_path, examination="brain_mr", role="FLAIR")
    assert flair.meta["series_uid"] == "2.25.2"
    assert refusal(tmp_path, examination="brain_mr", role="T1").code == "NO_SERIES"


def test_nothing_suitable_is_refused_with_the_reason(tmp_path):
    write_series(tmp_path / "mr", HEIGHTS_MM, **MR)
    assert refusal(tmp_path / "mr", examination="chest_ct").code == "WRONG_MODALITY"

    write_series(tmp_path / "two", [0, 2, 4, 8, 10], series=1)
    write_series(tmp_path / "two", HEIGHTS_MM, series=2, ImagePositionPatient=None)
    error = refusal(tmp_path / "two")
    assert error.code == "NO_SERIES"
    assert "MISSING_SLICE: Slice gap of 4.00 mm" in str(error)
    assert "NO_GEOMETRY: " in str(error)


def test_an_unknown_series_is_refused_with_those_there_are(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    error = refusal(tmp_path, series_uid="2.25.9")
    assert error.code == "NO_SUCH_SERIES"
    assert '1 "series 1" (CT, 5 images, 2.25.1)' in str(error)


def test_a_study_that_cannot_be_read_is_a_study_error(tmp_path):
    for path, code in (
        (tmp_path / "nowhere", "PATH_MISSING"),
        (tmp_path, "NO_DICOM"),
        (PACKAGED / "DICOMDIR", "SEVERAL_STUDIES"),
    ):
        error = refusal(path)
        assert isinstance(error, StudyError)
        assert error.code == code


def test_a_damaged_file_beside_a_whole_stack_is_refused(tmp_path):
    """It may be the last slice: without it the stack looks whole."""
    last = write_series(tmp_path, [0, 2, 4, 6, 8, 10])[-1]
    last.write_bytes(last.read_bytes()[:300])
    error = refusal(tmp_path)
    assert isinstance(error, StudyError)
    assert error.code == "DAMAGED_FILE"


def test_a_zip_archive_is_a_study(tmp_path):
    write_series(tmp_path / "study", HEIGHTS_MM)
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    image = ours(tmp_path / "study.zip")
    assert is_sound(image)
    assert image.meta["filename_or_obj"] == str(tmp_path / "study.zip")


def test_a_choice_that_says_nothing_is_an_error_at_once():
    with pytest.raises(ConfigError, match="Known are chest_ct") as error:
        StudyReader(examination="chset_ct")
    assert error.value.code == "UNKNOWN_EXAMINATION"
    for choice, code in (
        ({"examination": "chest_ct", "series_uid": "2.25.1"}, "EXAMINATION_AND_SERIES"),
        ({"examination": "brain_mr", "part": "b 1000"}, "EXAMINATION_AND_SERIES"),
        ({"role": "FLAIR"}, "ROLE_WITHOUT_EXAMINATION"),
    ):
        with pytest.raises(ConfigError) as error:
            StudyReader(**choice)
        assert error.value.code == code


# A refusal stays a refusal


class EagerReader(StudyReader):
    """Reads where MONAI's contract says so, in `read`."""

    def read(self, data, **kwargs):
        return self.get_data(super().read(data))

    def get_data(self, img):
        return img if isinstance(img, tuple) else super().get_data(img)


def test_no_other_reader_takes_what_was_refused(tmp_path):
    write_series(tmp_path, [0, 2, 4, 6, 12, 14, 16, 18])
    # An error in `read` makes LoadImage try its next reader, and the hole is gone without a word.
    silent = LoadImage(reader=EagerReader())(tmp_path)
    assert silent.shape[2] in (4, 8)

    for loader in (
        LoadImage(reader=StudyReader()),
        LoadImage(reader=StudyReader),
        LoadImage(reader="mla_med.imaging.reader.StudyReader", examination="chest_ct"),
        LoadImage(reader=["NibabelReader", "PydicomReader", StudyReader()]),
    ):
        with pytest.raises(SeriesError) as error:
            loader(tmp_path)
        assert error.value.code == "MISSING_SLICE"


def test_a_reader_that_monai_chooses_itself_refuses_too(tmp_path):
    write_series(tmp_path, [0, 2, 4, 8, 10])
    loader = LoadImage()
    loader.register(StudyReader())
    with pytest.raises(SeriesError) as error:
        loader(tmp_path)
    assert error.value.code == "MISSING_SLICE"


def test_only_what_may_be_a_study_is_claimed(tmp_path):
    image = write_series(tmp_path, HEIGHTS_MM)[0]
    (tmp_path / "ct.nii.gz").write_bytes(b"\x1f\x8b")
    reader = StudyReader()
    assert reader.verify_suffix(tmp_path)
    assert reader.verify_suffix([image, str(tmp_path)])
    assert reader.verify_suffix(tmp_path / "study.zip")
    assert not reader.verify_suffix(tmp_path / "ct.nii.gz")
    assert not reader.verify_suffix([image, tmp_path / "ct.nii.gz"])


def test_the_code_survives_compose_and_workers(tmp_path):
    write_series(tmp_path, [0, 2, 4, 8, 10])
    chain = Compose([LoadImaged(keys="image", reader=StudyReader()), EnsureChannelFirstd(keys="image")])
    with pytest.raises(RuntimeError, match="applying transform") as wrapped:
        chain({"image": tmp_path})
    assert isinstance(wrapped.value.__cause__, SeriesError)
    assert wrapped.value.__cause__.code == "MISSING_SLICE"

    loader = DataLoader(Dataset([{"image": str(tmp_path)}], chain), batch_size=1, num_workers=1)
    with pytest.raises(RuntimeError, match=r"Refused with code MISSING_SLICE\.") as told:
        next(iter(loader))
    traceback.clear_frames(told.tb)  # they hold the worker, which would take five seconds to end


# The image and its metadata


def test_the_image_equals_the_volume(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    volume = read_volume(read_study(tmp_path).series[0])
    image, meta = LoadImage(reader=StudyReader(), image_only=False)(tmp_path)
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert np.array_equal(image.as_tensor().numpy(), volume.voxels)
    assert image.affine.dtype == torch.float64
    assert np.array_equal(image.affine.numpy(), volume.affine)
    assert np.array_equal(meta["original_affine"], volume.affine)
    assert meta["space"] == "RAS"
    assert meta["spatial_shape"] == (COLUMNS, ROWS, 5)
    assert meta["filename_or_obj"] == str(tmp_path)
    image += 1  # the tensor is the pipeline's own


def test_metadata_hold_the_certificate_and_no_identity(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, SeriesDescription="Thorax Doe 2.0")
    meta = ours(tmp_path).meta
    assert (meta["study_uid"], meta["series_uid"], meta["modality"]) == ("2.25.1000", "2.25.1", "CT")
    assert meta["refused"] == ""
    certificate = meta["certificate"]
    assert certificate["shape"] == (COLUMNS, ROWS, 5)
    assert certificate["spacing_mm"] == (0.7, 0.8, 2.0)
    assert certificate["orientation"] == "axial"
    assert certificate["rescale"] == "slope 1, intercept -1024"
    assert certificate["air_hu"] == pytest.approx(-1000, abs=5)
    assert certificate["contrast_header"] == "not stated"
    assert "Doe" not in repr(meta)
    assert "MRN-4711" not in repr(meta)


def test_monais_own_transforms_follow(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    chain = Compose(
        [
            LoadImaged(keys="image", reader=StudyReader()),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys="image", pixdim=(0.7, 0.8, 1.0)),
        ]
    )
    image = chain({"image": tmp_path})["image"]
    assert image.shape == (1, COLUMNS, ROWS, 9)
    # The first voxel is now the last one along the row and the column: LPS (-6.5, -14.4, 0).
    expected = [[0.7, 0, 0, 6.5], [0, 0.8, 0, 14.4], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert np.allclose(image.affine, expected)
    assert image[0, -1, -1, ::2].tolist() == [-1000, -999, -998, -997, -996]
    assert image[0, -1, -1, 1] == pytest.approx(-999.5)
    SaveImage(tmp_path / "out", resample=True, separate_folder=False, print_log=False)(image)
    (saved,) = (tmp_path / "out").iterdir()
    assert nibabel.load(saved).shape == (COLUMNS, ROWS, 5)
    assert np.allclose(nibabel.load(saved).affine, SOUND)


def test_a_real_chest_ct_is_read_as_read_volume_reads_it(real_series):
    folder = real_series("ct_chest_philips_32of275")
    image = ours(folder)
    volume = read_volume(read_study(folder).series[0])
    assert image.shape == (512, 512, 32)
    assert np.array_equal(image.affine.numpy(), volume.affine)
    assert np.array_equal(image.as_tensor().numpy(), volume.voxels)


def test_the_axial_series_of_a_real_study_is_read_beside_its_localizer(real_series):
    image = ours(real_series("ct_head_philips_study"))
    assert image.shape[2] == 28
    assert step_mm(image) == 5.0
    assert "LOCALIZER" in image.meta["refused"]


# Channels


def channels(tmp_path, **third):
    for number in (1, 2):
        write_series(tmp_path / str(number), HEIGHTS_MM, series=number, **MR)
    write_series(tmp_path / "3", HEIGHTS_MM, series=3, stored=lambda k: anatomy(k) * 2, **MR | third)
    return [tmp_path / str(number) for number in (1, 2, 3)]


def test_several_series_on_one_grid_become_channels(tmp_path):
    paths = channels(tmp_path, ImagePositionPatient=lambda k: [-10.0005, -20, 2 * k])
    image = ours(paths)
    assert image.shape == (3, COLUMNS, ROWS, 5)
    assert np.allclose(image.affine, SOUND, atol=1e-12)
    assert torch.equal(image[2].as_tensor(), 2 * image[0].as_tensor())
    assert image.meta["series_uid"] == ["2.25.1", "2.25.2", "2.25.3"]
    assert [c["rescale"] for c in image.meta["certificate"]] == ["slope 1, intercept 0"] * 3
    assert EnsureChannelFirstd(keys="image")({"image": image})["image"].shape == (3, COLUMNS, ROWS, 5)


@pytest.mark.parametrize(
    ("code", "words", "third"),
    [
        (
            "GEOMETRY_DIFFERS",
            "Channel 3 of 3, series 2.25.3, lies up to 0.010 mm away",
            {"ImagePositionPatient": lambda k: [-10.01, -20, 2 * k]},
        ),
        ("GEOMETRY_DIFFERS", "lies up to 0.400 mm away", {"PixelSpacing": [0.8, 0.78]}),
        ("GEOMETRY_DIFFERS", "has 6 x 8 x 4 voxels, the first 6 x 8 x 5", {}),
        ("SEVERAL_STUDIES", "belongs to study 2.25.2000", {"StudyInstanceUID": "2.25.2000"}),
    ],
)
def test_series_on_other_grids_are_no_channels(tmp_path, code, words, third):
    paths = channels(tmp_path, **third)
    if not third:
        sorted(paths[2].iterdir())[-1].unlink()
    error = refusal(paths)
    assert error.code == code
    assert words in str(error)


def test_slices_given_one_by_one_are_no_channels(tmp_path):
    paths = write_series(tmp_path, HEIGHTS_MM)
    assert refusal(paths).code == "TOO_FEW_SLICES"


# Datasets


def studies(tmp_path):
    """CT with air, CT without, MR: their certificates know different things."""
    constant = {"stored": lambda k: np.full((ROWS, COLUMNS), 1024 + 40)}
    write_series(tmp_path / "1", HEIGHTS_MM)
    write_series(tmp_path / "2", HEIGHTS_MM, series=2, ContrastBolusAgent="Iohexol", **constant)
    write_series(tmp_path / "3", HEIGHTS_MM, series=3, **MR)
    shutil.copy(tmp_path / "1" / "1-000", tmp_path / "1" / "again")
    return [{"image": str(tmp_path / str(number))} for number in (1, 2, 3)]


def chain():
    return Compose([LoadImaged(keys="image", reader=StudyReader()), EnsureChannelFirstd(keys="image")])


def test_workers_collate_unlike_certificates(tmp_path):
    loader = DataLoader(Dataset(studies(tmp_path), chain()), batch_size=3, num_workers=2)
    (batch,) = loader
    assert batch["image"].shape == (3, 1, COLUMNS, ROWS, 5)
    certificate = batch["image"].meta["certificate"]
    assert certificate["duplicates_dropped"].tolist() == [1, 0, 0]
    assert torch.isnan(certificate["air_hu"]).tolist() == [False, False, True]
    assert batch["image"].meta["modality"] == ["CT", "CT", "MR"]
    last = decollate_batch(batch)[2]["image"]
    assert last.meta["series_uid"] == "2.25.3"
    assert np.allclose(last.affine, SOUND)


def test_a_persistent_dataset_caches_image_and_certificate(tmp_path):
    items = studies(tmp_path)
    cache = tmp_path / "cache"
    first = PersistentDataset(items, chain(), cache_dir=cache, track_meta=True)[0]["image"]
    shutil.rmtree(tmp_path / "1")
    again = PersistentDataset(items, chain(), cache_dir=cache, track_meta=True)[0]["image"]
    assert torch.equal(first.as_tensor(), again.as_tensor())
    assert np.allclose(again.affine, SOUND)
    assert again.meta["certificate"] == first.meta["certificate"]
    assert again.meta["certificate"]["duplicates_dropped"] == 1


def test_a_reader_travels_with_its_choice(tmp_path):
    reader = pickle.loads(pickle.dumps(StudyReader(examination="chest_ct")))
    assert reader.examination == "chest_ct"
    assert reader.series_uid is None
