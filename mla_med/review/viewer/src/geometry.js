// A grid of voxels in the patient -> where millimetres, slices and boxes lie on pictures of it.
//
// A place is three fractions of the grid turned to its nearest patient axes, which run to the patient's right,
// front and head; 0 and 1 are the outer edges of the first and the last voxel. Pictures follow the radiological
// convention. Knows nothing of pixels or pages.

/** The patient axis (x right, y anterior, z superior) along which the slices of a view are stacked. */
export const AXES = { axial: 2, coronal: 1, sagittal: 0 };
export const VIEWS = ["sagittal", "coronal", "axial"];
/** What is at the left, right, top and bottom of a picture: RAS runs against both axes of every picture. */
export const EDGES = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };
const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]];

export class Grid {
  /** shape: voxels along I, J, K. affine: rows, voxel index -> patient RAS in mm. */
  constructor(shape, affine) {
    this.shape = shape;
    this.affine = affine;
    this.inverse = inverse(affine);
    this.voxelAxis = nearestAxes(affine); // by patient axis, the voxel axis that runs along it
    this.flip = this.voxelAxis.map((voxel, patient) => affine[patient][voxel] < 0);
    this.dims = this.voxelAxis.map((voxel) => shape[voxel]);
    this.spacing = this.voxelAxis.map((voxel) => Math.hypot(...[0, 1, 2].map((row) => affine[row][voxel])));
    /** The patient axis along which the slices were taken. */
    this.stack = this.voxelAxis.indexOf(2);
  }

  get slices() {
    return this.shape[2];
  }

  fractionOfVoxel(voxel) {
    return this.voxelAxis.map((axis, patient) => {
      const along = (voxel[axis] + 0.5) / this.shape[axis];
      return this.flip[patient] ? 1 - along : along;
    });
  }

  voxelOfFraction(fraction) {
    const voxel = [0, 0, 0];
    this.voxelAxis.forEach((axis, patient) => {
      const along = this.flip[patient] ? 1 - fraction[patient] : fraction[patient];
      voxel[axis] = along * this.shape[axis] - 0.5;
    });
    return voxel;
  }

  fractionOfMm(mm) {
    return this.fractionOfVoxel(apply(this.inverse, mm));
  }

  mmOfFraction(fraction) {
    return apply(this.affine, this.voxelOfFraction(fraction));
  }

  /** The middle of slice k along the stack, as a fraction. */
  fractionOfSlice(k) {
    const along = (k + 0.5) / this.slices;
    return this.flip[this.stack] ? 1 - along : along;
  }

  sliceOfFraction(fraction) {
    const along = this.flip[this.stack] ? 1 - fraction[this.stack] : fraction[this.stack];
    return clamp(Math.floor(along * this.slices), 0, this.slices - 1);
  }

  /** Number, from 0, of the voxels of the turned grid that a plane across `axis` shows. */
  indexAt(axis, fraction) {
    return clamp(Math.floor(fraction[axis] * this.dims[axis]), 0, this.dims[axis] - 1);
  }

  /** The smallest box of fractions around a box in mm: exact where the grid does not lie oblique. */
  fractionsOfBox([low, high]) {
    const corners = [];
    for (let n = 0; n < 8; n++) {
      corners.push(this.fractionOfMm([0, 1, 2].map((axis) => (n & (1 << axis) ? high : low)[axis])));
    }
    return [Math.min, Math.max].map((pick) => [0, 1, 2].map((axis) => pick(...corners.map((c) => c[axis]))));
  }

  /** Width and height in mm of the picture of a view. */
  sizeMm(axis) {
    return across(axis).map((other) => this.dims[other] * this.spacing[other]);
  }
}

/** The two patient axes of a picture across `axis`: the one along its width, the one along its height. */
export function across(axis) {
  return [0, 1, 2].filter((other) => other !== axis);
}

/** Where a place lies on the picture across `axis`: 0 at the left and at the top. */
export function onPicture(axis, fraction) {
  return across(axis).map((other) => 1 - fraction[other]);
}

/** "S 12.5 mm": letters instead of signs, on which DICOM and NIfTI disagree. */
export function coordinate(axis, mm) {
  return `${LETTERS[axis][mm >= 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)} mm`;
}

export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function apply(matrix, [x, y, z]) {
  return [0, 1, 2].map((r) => matrix[r][0] * x + matrix[r][1] * y + matrix[r][2] * z + matrix[r][3]);
}

function inverse(m) {
  const [[a, b, c], [d, e, f], [g, h, i]] = m;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / det));
  const shift = [m[0][3], m[1][3], m[2][3]];
  return rows.map((row) => [...row, -row.reduce((sum, value, n) => sum + value * shift[n], 0)]);
}

/** For each patient axis the voxel axis that runs nearest to it, each once: the strongest first. */
function nearestAxes(affine) {
  const lengths = [0, 1, 2].map((voxel) => Math.hypot(...[0, 1, 2].map((row) => affine[row][voxel])));
  const pairs = [];
  for (let patient = 0; patient < 3; patient++) {
    for (let voxel = 0; voxel < 3; voxel++) {
      pairs.push([Math.abs(affine[patient][voxel]) / lengths[voxel], patient, voxel]);
    }
  }
  pairs.sort((one, other) => other[0] - one[0]);
  const found = [null, null, null];
  for (const [, patient, voxel] of pairs) {
    if (found[patient] === null && !found.includes(voxel)) found[patient] = voxel;
  }
  return found;
}
