"""NIfTI: grids, places and values as nibabel reads them, and headers that promise what is not so."""

import gzip
import math

import nibabel
import numpy as np
import pytest
from conftest import SHARED
from dicom_series import COLUMNS, ROWS, write_series

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import ConfigError, OutputError, SeriesError
from mla_med.imaging.nifti import read_nifti, write_nifti

SHAPE = (5, 6, 4)
RAS = np.array([[0.7, 0, 0, -10.0], [0, 0.8, 0, 20.0], [0, 0, 2.0, 30.0], [0, 0, 0, 1]])
SHIFTED = RAS + np.array([[0, 0, 0, 3.0], [0] * 4, [0] * 4, [0] * 4])
FLAT = RAS * [1, 1, 0, 1]


def hu():
    """Air around tissue, no two voxels alike."""
    values = np.full(SHAPE, -1000, dtype=np.int16)
    values[1:4, 2:5] = 40
    return values + np.arange(120, dtype=np.int16).reshape(SHAPE)


def write(
    path, values=None, *, sform=(RAS, 1), qform=(None, 0), unit="mm", kind=nibabel.Nifti1Image, **fields
):
    """A file as nibabel writes it, then header fields as nibabel would not write them."""
    image = kind(hu() if values is None else values, None)
    image.header.set_xyzt_units(unit)
    image.header["pixdim"][1:4] = (0.7, 0.8, 2.0)
    image.header.set_qform(*qform)
    image.header.set_sform(*sform)
    image.to_filename(path)
    if fields:
        patch(path, **fields)
    return path


def patch(path, **fields):
    """Set header fields in the file, whatever nibabel thinks of them."""
    packed = path.suffix == ".gz"
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))


def refusal(path, modality="CT", **choice):
    with pytest.raises(SeriesError) as error:
        read_nifti(path, modality, **choice)
    assert "\n" not in str(error.value)
    return error.value


# What is read


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.hdr", "ct.img", "ct.hdr.gz", "ct.img.gz"])
def test_each_kind_of_file_is_read(tmp_path, name):
    pair = ".nii" not in name
    write(tmp_path / name, kind=nibabel.Nifti1Pair if pair else nibabel.Nifti1Image)
    volume = read_nifti(tmp_path / name)
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels, hu())
    assert np.allclose(volume.affine, RAS, atol=1e-6)
    certificate = volume.certificate
    assert certificate.shape == SHAPE
    assert certificate.spacing_mm == pytest.approx((0.7, 0.8, 2.0))
    assert (certificate.orientation, certificate.tilt_deg, certificate.notes) == ("axial", 0.0, ())
    assert certificate.air_hu == pytest.approx(-1000, abs=5)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("header", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize("stored", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_every_type_and_byte_order_is_read_as_nibabel_reads_it(tmp_path, header, endian, stored):
    values = np.arange(120).reshape(SHAPE).astype(endian + stored)
    kind = nibabel.Nifti1Image if header is nibabel.Nifti1Header else nibabel.Nifti2Image
    image = kind(values, RAS, header(endianness=endian))
    image.header.set_data_dtype(values.dtype)
    image.header.set_slope_inter(0.1, -3.0)
    image.to_filename(tmp_path / "mr.nii.gz")
    theirs = nibabel.load(tmp_path / "mr.nii.gz")
    volume = read_nifti(tmp_path / "mr.nii.gz", "MR")
    assert theirs.get_data_dtype() == values.dtype
    assert np.array_equal(volume.voxels, theirs.get_fdata().astype(np.float32))
    assert np.array_equal(volume.affine, theirs.affine)


def test_slope_and_intercept_are_applied_exactly_once(tmp_path):
    stored = np.arange(120, dtype=np.int16).reshape(SHAPE)
    path = write(tmp_path / "mr.nii", stored, scl_slope=2.0, scl_inter=-10.0)
    volume = read_nifti(path, "MR")
    assert volume.voxels[0, 0].tolist() == [-10, -8, -6, -4]
    assert volume.certificate.rescale == "slope 2, intercept -10"
    patch(path, scl_slope=0.0)
    assert read_nifti(path, "MR").voxels[0, 0].tolist() == [0, 1, 2, 3]


def test_whole_numbers_beyond_float32_are_scaled_before_they_are_rounded(tmp_path):
    stored = np.full(SHAPE, 2**24 + 1, dtype=np.int32)
    path = write(tmp_path / "mr.nii", stored, scl_slope=1.0, scl_inter=-(2.0**24))
    assert read_nifti(path, "MR").voxels[0, 0, 0] == 1.0


def test_ct_rescaled_twice_is_refused(tmp_path):
    """HU in the file, and the slope and intercept of a table of metadata applied to them again."""
    twice = np.where(hu() < -500, -1000, 0) + np.arange(120).reshape(SHAPE) - 1024
    error = refusal(write(tmp_path / "ct.nii", twice.astype(np.int16)))
    assert error.code == "HU_IMPLAUSIBLE"
    assert "ct.nii looks rescaled twice" in str(error)


def test_ct_never_rescaled_is_refused(tmp_path):
    error = refusal(write(tmp_path / "ct.nii", hu() + np.int16(1024)))
    assert error.code == "HU_IMPLAUSIBLE"
    assert "never rescaled" in str(error)


def test_a_modality_that_is_not_read_is_an_error(tmp_path):
    path = write(tmp_path / "ct.nii")
    assert read_nifti(path, "ct").series.modality == "CT"
    with pytest.raises(ConfigError) as error:
        read_nifti(path, "PT")
    assert error.value.code == "UNKNOWN_MODALITY"


# Identity


def test_equal_volumes_have_equal_uids_whatever_their_files(tmp_path):
    one, other = read_nifti(write(tmp_path / "a.nii")), read_nifti(write(tmp_path / "b.nii.gz"))
    assert one.series.series_uid == other.series.series_uid
    assert one.series.series_uid.startswith("2.25.")
    assert len(one.series.series_uid) <= 44
    uids = [i.sop_instance_uid for i in one.series.instances]
    assert uids == [i.sop_instance_uid for i in other.series.instances]
    assert len({one.series.series_uid, *uids}) == 5
    assert [(i.path.name, i.frame) for i in other.series.instances] == [("b.nii.gz", k) for k in range(4)]
    assert (one.series.description, one.series.body_part) == ("", "")


def test_another_voxel_place_or_modality_is_another_series(tmp_path):
    changed = hu()
    changed[2, 2, 2] += 1
    uids = {
        read_nifti(write(tmp_path / "a.nii")).series.series_uid,
        read_nifti(tmp_path / "a.nii", "MR").series.series_uid,
        read_nifti(write(tmp_path / "b.nii", changed)).series.series_uid,
        read_nifti(write(tmp_path / "c.nii", sform=(SHIFTED, 1))).series.series_uid,
    }
    assert len(uids) == 4


# Place


def test_the_sform_goes_before_an_equal_qform(tmp_path):
    volume = read_nifti(write(tmp_path / "ct.nii", sform=(RAS, 2), qform=(RAS, 1)))
    assert volume.certificate.notes == ()
    assert np.allclose(volume.affine, RAS, atol=1e-6)


@pytest.mark.parametrize(
    ("sform", "qform", "used", "note"),
    [
        (
            (RAS, 2),
            (SHIFTED, 1),
            RAS,
            "The sform (aligned) and the qform (scanner) differ by up to 3.000 mm; the sform is used.",
        ),
        (
            (SHIFTED, 4),
            (RAS, 1),
            RAS,
            "The sform (MNI 152) and the qform (scanner) differ by up to 3.000 mm; the qform is used.",
        ),
        ((RAS, 4), (None, 0), RAS, "Coordinates of MNI 152 space: mm are not those of the patient."),
        ((FLAT, 2), (RAS, 1), RAS, "The sform is not a usable affine; the qform is used."),
        ((RAS * np.nan, 2), (RAS, 1), RAS, "The sform is not a usable affine; the qform is used."),
        ((RAS * 1e30, 2), (RAS, 1), RAS, "The sform is not a usable affine; the qform is used."),
        ((None, 0), (RAS, 1), RAS, None),
    ],
)
def test_of_two_forms_the_best_is_used_and_the_other_noted(tmp_path, sform, qform, used, note):
    volume = read_nifti(write(tmp_path / "ct.nii", sform=sform, qform=qform))
    assert np.allclose(volume.affine, used, atol=1e-5)
    assert volume.certificate.notes == ((note,) if note else ())


def test_a_quaternion_that_is_none_leaves_the_sform(tmp_path):
    path = write(tmp_path / "ct.nii", qform=(RAS, 1), quatern_b=3.0)
    volume = read_nifti(path)
    assert np.allclose(volume.affine, RAS, atol=1e-6)
    assert "The qform is not a usable affine; the sform is used." in volume.certificate.notes
    patch(path, sform_code=0)
    assert refusal(path).code == "NO_GEOMETRY"


def test_a_qfac_of_zero_means_one(tmp_path):
    path = write(tmp_path / "ct.nii", sform=(None, 0), qform=(RAS, 1), pixdim=[0, 0.7, 0.8, 2, 0, 0, 0, 0])
    assert np.allclose(read_nifti(path).affine, RAS, atol=1e-6)


def test_a_pixdim_that_contradicts_the_sform_is_noted(tmp_path):
    path = write(tmp_path / "ct.nii", pixdim=[1, 1.4, 0.8, 2, 0, 0, 0, 0])
    assert read_nifti(path).certificate.notes == (
        "The pixdim says 1.4 x 0.8 x 2 mm, the sform otherwise; the sform is used.",
    )


def test_a_file_without_place_is_refused_unless_spacing_is_enough(tmp_path):
    path = write(tmp_path / "ct.nii", sform=(None, 0))
    error = refusal(path)
    assert error.code == "NO_GEOMETRY"
    assert "left and right are unknown" in str(error)
    volume = read_nifti(path, spacing_only=True)
    assert np.allclose(np.diag(volume.affine), [-0.7, 0.8, 2.0, 1])
    assert "left and right are guessed" in volume.certificate.notes[0]
    patch(path, pixdim=[1, 0, 0.8, 2, 0, 0, 0, 0])
    assert refusal(path, spacing_only=True).code == "NO_GEOMETRY"


@pytest.mark.parametrize(
    ("unit", "factor", "notes"),
    [
        ("mm", 1.0, ()),
        ("meter", 1e-3, ("Converted from meters.",)),
        ("micron", 1e3, ("Converted from microns.",)),
        ("unknown", 1.0, ("The unit of length is not stated; taken as mm.",)),
    ],
)
def test_lengths_become_mm(tmp_path, unit, factor, notes):
    form = np.diag([factor, factor, factor, 1]) @ RAS
    pixdim = [1, 0.7 * factor, 0.8 * factor, 2 * factor, 0, 0, 0, 0]
    volume = read_nifti(write(tmp_path / "ct.nii", sform=(form, 1), unit=unit, pixdim=pixdim))
    assert np.allclose(volume.affine, RAS, atol=1e-5)
    assert volume.certificate.notes == notes


def test_a_unit_that_cannot_be_true_is_refused(tmp_path):
    path = write(tmp_path / "ct.nii", unit="meter")
    error = refusal(path)
    assert error.code == "SPACING_IMPLAUSIBLE"
    assert "700 x 800 x 2000 mm" in str(error)
    patch(path, xyzt_units=7)
    assert refusal(path).code == "UNKNOWN_UNIT"


def test_a_left_handed_grid_stays_as_it_is(tmp_path):
    las = RAS * [[-1], [1], [1], [1]]
    volume = read_nifti(write(tmp_path / "ct.nii", sform=(las, 1)))
    assert np.allclose(volume.affine, las, atol=1e-6)
    assert np.array_equal(volume.voxels, hu())
    assert (volume.certificate.tilt_deg, volume.certificate.orientation) == (0.0, "axial")


def turned(degrees):
    """About the axis from right to left."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ RAS


@pytest.mark.parametrize(("degrees", "words"), [(20, "axial"), (45, "oblique"), (90, "coronal")])
def test_the_orientation_is_named(tmp_path, degrees, words):
    certificate = read_nifti(write(tmp_path / "ct.nii", sform=(turned(degrees), 1))).certificate
    assert certificate.orientation == words
    assert certificate.spacing_mm == pytest.approx((0.7, 0.8, 2.0))
    assert certificate.tilt_deg == pytest.approx(0, abs=0.03)


def test_shear_is_measured_and_noted(tmp_path):
    tilted = RAS.copy()
    tilted[1, 2] = 2 * math.tan(math.radians(15))
    certificate = read_nifti(
        write(tmp_path / "ct.nii", sform=(tilted, 1), pixdim=pixdim_of(tilted))
    ).certificate
    assert certificate.tilt_deg == 15.0
    assert certificate.spacing_mm[2] == pytest.approx(2 / math.cos(math.radians(15)))
    assert certificate.notes == ("Slices tilted by 15.0 degrees, kept as shear in the affine.",)

    skewed = RAS.copy()
    skewed[0, 1] = 0.8 * math.tan(math.radians(10))
    certificate = read_nifti(
        write(tmp_path / "mr.nii", sform=(skewed, 1), pixdim=pixdim_of(skewed))
    ).certificate
    assert certificate.notes == ("Rows and columns are sheared by 10.0 degrees: registered, not as scanned.",)


def pixdim_of(form):
    return [1, *np.linalg.norm(form[:3, :3], axis=0), 0, 0, 0, 0]


# What is refused


def test_several_volumes_are_refused_unless_one_is_named(tmp_path):
    values = np.stack([hu(), hu() + np.int16(1)], axis=-1)
    path = write(tmp_path / "ct.nii.gz", values)
    error = refusal(path)
    assert error.code == "SEVERAL_VOLUMES"
    assert "ct.nii.gz holds 2 volumes" in str(error)
    second = read_nifti(path, volume=1)
    assert np.array_equal(second.voxels, hu() + 1)
    assert second.series.part == "volume 1 of 2, from 0"
    assert second.series.series_uid != read_nifti(path, volume=0).series.series_uid
    assert refusal(path, volume=2).code == "NO_SUCH_VOLUME"
    assert refusal(path, volume=-1).code == "NO_SUCH_VOLUME"


def test_axes_of_length_one_are_no_further_volumes(tmp_path):
    path = write(tmp_path / "ct.nii", hu()[..., None, None])
    assert read_nifti(path).voxels.shape == SHAPE
    assert read_nifti(path, volume=0).series.part == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_no_numbers_are_refused_and_counted(tmp_path, value):
    values = hu().astype(np.float64)
    values[0, 0, :2] = value
    error = refusal(write(tmp_path / "ct.nii", values))
    assert error.code == "NOT_FINITE"
    assert "2 of 120 voxels of ct.nii are not finite numbers" in str(error)


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("TOO_LARGE", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}),
        ("TRUNCATED_PIXELS", {"dim": [3, 1000, 1000, 1000, 1, 1, 1, 1]}),
        ("TOO_FEW_SLICES", {"dim": [2, 5, 6, 1, 1, 1, 1, 1]}),
        ("FILE_DAMAGED", {"dim": [3, 5, -6, 4, 1, 1, 1, 1]}),
        ("FILE_DAMAGED", {"dim": [0, 5, 6, 4, 1, 1, 1, 1]}),
        ("FILE_DAMAGED", {"datatype": 999}),
        ("FILE_DAMAGED", {"vox_offset": 0}),
        ("FILE_DAMAGED", {"vox_offset": 3e9}),
        ("FILE_DAMAGED", {"vox_offset": np.nan}),
        ("FILE_DAMAGED", {"scl_slope": 1.0, "scl_inter": np.inf}),
        ("NOT_NIFTI", {"magic": b"ni1"}),
        ("NOT_NIFTI", {"magic": b""}),
    ],
)
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_headers_that_promise_what_is_not_there_are_refused(tmp_path, name, code, fields):
    assert refusal(write(tmp_path / name, **fields)).code == code


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colour_and_complex_numbers_are_refused(tmp_path, dtype):
    assert refusal(write(tmp_path / "ct.nii", np.zeros(SHAPE, dtype))).code == "UNSUPPORTED_PIXELS"


def test_a_packed_file_is_unpacked_as_far_as_its_header_promises(tmp_path):
    path = write(tmp_path / "ct.nii")
    whole = path.read_bytes()
    packed = tmp_path / "ct.nii.gz"
    # 200 MB of zeros behind the voxels, in 200 kB.
    packed.write_bytes(gzip.compress(whole, 1) + b"".join([gzip.compress(bytes(2**20), 9)] * 200))
    assert np.array_equal(read_nifti(packed).voxels, hu())


def test_damage_to_a_packed_file_is_found(tmp_path):
    path = write(
        tmp_path / "ct.nii.gz", np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20), np.int16)
    )
    whole = path.read_bytes()
    for damaged, code in (
        (whole[: len(whole) // 2], "TRUNCATED_PIXELS"),
        (whole[:20], "TRUNCATED_PIXELS"),
        (whole[:-8] + b"\0\0\0\0" + whole[-4:], "FILE_DAMAGED"),  # the checksum
        (whole[:3000] + b"\xff" * 40 + whole[3040:], "FILE_DAMAGED"),
        (b"", "NOT_NIFTI"),
        (b"PK\x03\x04" + bytes(600), "NOT_NIFTI"),
    ):
        path.write_bytes(damaged)
        assert refusal(path, "MR").code == code
    path.unlink()
    assert refusal(path).code == "PATH_MISSING"


def test_a_pair_needs_both_files(tmp_path):
    write(tmp_path / "ct.hdr", kind=nibabel.Nifti1Pair)
    (tmp_path / "ct.img").unlink()
    error = refusal(tmp_path / "ct.hdr")
    assert error.code == "PATH_MISSING"
    assert "No file ct.img" in str(error)


def test_extensions_are_not_read(tmp_path):
    image = nibabel.Nifti1Image(hu(), RAS)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane" * 100))
    image.to_filename(tmp_path / "ct.nii")
    volume = read_nifti(tmp_path / "ct.nii")
    assert np.array_equal(volume.voxels, hu())
    assert "Doe" not in repr((volume.series, volume.certificate))


# Writing


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_a_series_survives_nifti(tmp_path, name):
    write_series(tmp_path / "dicom", [0, 2, 4, 6, 8])
    volume = read_volume(read_study(tmp_path / "dicom").series[0])
    write_nifti(volume, tmp_path / name)
    again = read_nifti(tmp_path / name)
    assert np.array_equal(again.voxels, volume.voxels)
    assert np.allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-6)
    assert again.certificate.notes == ()
    assert again.certificate.spacing_mm == pytest.approx(volume.certificate.spacing_mm, rel=1e-6)
    assert again.certificate.air_hu == volume.certificate.air_hu

    theirs = nibabel.load(tmp_path / name)
    assert theirs.shape == (COLUMNS, ROWS, 5)
    assert theirs.get_data_dtype() == np.int16
    assert np.array_equal(theirs.get_fdata(), volume.voxels)
    assert theirs.header.get_xyzt_units()[0] == "mm"
    assert (int(theirs.header["sform_code"]), int(theirs.header["qform_code"])) == (1, 1)
    assert np.allclose(theirs.header.get_qform(), volume.affine, atol=1e-5)
    assert bytes(theirs.header["descrip"]).strip(b"\0") == b""
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "dicom"]
    raw = (tmp_path / name).read_bytes()
    assert b"Doe" not in (gzip.decompress(raw) if name.endswith(".gz") else raw)


def test_values_that_are_not_whole_are_kept_as_they_are(tmp_path):
    values = hu() + np.float32(0.1)
    volume = read_nifti(write(tmp_path / "in.nii", values))
    write_nifti(volume, tmp_path / "out.nii.gz")
    assert nibabel.load(tmp_path / "out.nii.gz").get_data_dtype() == np.float32
    again = read_nifti(tmp_path / "out.nii.gz")
    assert np.array_equal(again.voxels, values)
    assert again.series.series_uid == volume.series.series_uid


def test_a_sheared_grid_is_written_without_the_qform_that_cannot_hold_it(tmp_path):
    # Real gantry tilt: the image plane leans, the positions run straight up.
    write_series(
        tmp_path / "dicom", [0, 2, 4, 6, 8], ImageOrientationPatient=[1, 0, 0, 0, 0.965926, 0.258819]
    )
    volume = read_volume(read_study(tmp_path / "dicom").series[0])
    write_nifti(volume, tmp_path / "ct.nii")
    again = read_nifti(tmp_path / "ct.nii")
    assert np.allclose(again.affine, volume.affine, atol=1e-6)
    assert again.certificate.tilt_deg == volume.certificate.tilt_deg == 15.0
    assert again.certificate.notes == ("Slices tilted by 15.0 degrees, kept as shear in the affine.",)
    assert int(nibabel.load(tmp_path / "ct.nii").header["qform_code"]) == 0


def test_the_same_volume_makes_the_same_file(tmp_path):
    volume = read_nifti(write(tmp_path / "in.nii"))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(volume, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    small = read_nifti(write(tmp_path / "small.nii"))
    write_nifti(small, full_disk / "ct.nii.gz")
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    large = read_nifti(write(tmp_path / "large.nii", noise), "MR")
    with pytest.raises(OutputError, match="No space left"):
        write_nifti(large, full_disk / "ct.nii.gz")
    assert [p.name for p in full_disk.iterdir()] == ["ct.nii.gz"]
    assert np.array_equal(read_nifti(full_disk / "ct.nii.gz").voxels, small.voxels)


def test_a_name_that_is_no_nifti_is_an_error(tmp_path):
    volume = read_nifti(write(tmp_path / "in.nii"))
    with pytest.raises(OutputError) as error:
        write_nifti(volume, tmp_path / "out.img")
    assert error.value.code == "UNKNOWN_SUFFIX"
    with pytest.raises(OutputError, match="No such file or directory"):
        write_nifti(volume, tmp_path / "nowhere" / "out.nii")


# Real files


@pytest.mark.parametrize(
    ("name", "modality", "shape"),
    [
        ("example_ct.nii.gz", "CT", (122, 101, 112)),
        ("example_ct_sm.nii.gz", "CT", (122, 101, 30)),
        ("example_mr_sm.nii.gz", "MR", (117, 91, 20)),
    ],
)
def test_real_files_are_read_as_nibabel_reads_them_and_survive(tmp_path, name, modality, shape):
    path = SHARED / "nifti" / "totalsegmentator_ct" / name
    if not path.is_file():
        pytest.skip(f"development data is not here: {name}")
    volume, theirs = read_nifti(path, modality), nibabel.load(path)
    assert volume.voxels.shape == shape
    assert np.array_equal(volume.voxels, theirs.get_fdata().astype(np.float32))
    assert np.array_equal(volume.affine, theirs.affine)
    assert volume.certificate.spacing_mm == (3.0, 3.0, 3.0)
    write_nifti(volume, tmp_path / "again.nii.gz")
    again = read_nifti(tmp_path / "again.nii.gz", modality)
    assert again.series.series_uid == volume.series.series_uid
    assert np.array_equal(again.affine, volume.affine)


def test_a_real_series_equals_the_conversion_that_the_field_trusts(real_series):
    volume = read_volume(read_study(real_series("mr_t1_siemens_jpegls14")).series[0])
    theirs = read_nifti(real_series("mr_t1_siemens_jpegls14_ref") / "anat-T1w_acq-tfl_5001.nii", "MR")
    # The converter chose other axes and took the step from two slices, which differs by 0.1 micrometre.
    index = np.linalg.inv(theirs.affine) @ volume.affine
    whole = np.rint(index)
    assert np.abs(index - whole).max() < 0.01
    ours = np.array(np.meshgrid(*(range(0, n, 7) for n in volume.voxels.shape), indexing="ij")).reshape(3, -1)
    other = (whole[:3, :3] @ ours + whole[:3, 3:]).astype(int)
    assert np.array_equal(volume.voxels[tuple(ours)], theirs.voxels[tuple(other)])


def test_a_real_tilted_series_survives_nifti(tmp_path, real_series):
    volume = read_volume(read_study(real_series("ct_head_philips_tilt+16.5_28of58")).series[0])
    write_nifti(volume, tmp_path / "ct.nii")
    again = read_nifti(tmp_path / "ct.nii")
    assert np.array_equal(again.voxels, volume.voxels)
    assert np.allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-6)
    assert again.certificate.tilt_deg == volume.certificate.tilt_deg == pytest.approx(16.5, abs=0.05)
