// A volume, or a picture that the server made of one slice, and a window -> grey values on a 2-D canvas.
//
// Every stored voxel of a slice is looked up in the window and drawn as it is; only the way to the screen's
// pixels is smoothed. Needs no WebGL. Knows nothing of boxes, of series or of the page.

import { across } from "./geometry.js";

export class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.buffer = document.createElement("canvas");
    this.lookup = new Uint32Array(65536); // of an int16, less its lowest: opaque grey, as a canvas keeps it
    this.key = "";
    this.painted = "";
  }

  clear() {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** One plane into a pane. */
  drawVolume(volume, axis, fraction, window, pane) {
    this.setWindow(volume, window);
    const grid = volume.grid;
    const [width, height] = across(axis).map((other) => grid.dims[other]);
    const index = grid.indexAt(axis, fraction);
    this.fill(volume, axis, index, width, height);
    this.place(this.buffer, pane);
  }

  /** A picture that came as one. */
  drawPicture(picture, pane) {
    this.place(picture, pane);
  }

  place(source, { left, top, width, height, clip }) {
    const context = this.context;
    context.save();
    context.beginPath();
    context.rect(...clip);
    context.clip();
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, left, top, width, height);
    context.restore();
  }

  fill(volume, axis, index, width, height) {
    const { grid, voxels } = volume;
    const strides = [1, grid.shape[0], grid.shape[0] * grid.shape[1]];
    const [right, up] = across(axis);
    // pictures run against the patient's axes, so a plain axis is walked backwards
    const walk = (patient) => {
      const stride = strides[grid.voxelAxis[patient]];
      const last = (grid.dims[patient] - 1) * stride;
      return grid.flip[patient] ? [0, stride] : [last, -stride];
    };
    const [x0, dx] = walk(right);
    const [y0, dy] = walk(up);
    const along = grid.flip[axis] ? grid.dims[axis] - 1 - index : index;
    const base = along * strides[grid.voxelAxis[axis]] + x0 + y0;
    if (this.buffer.width !== width || this.buffer.height !== height) {
      this.buffer.width = width;
      this.buffer.height = height;
    }
    const context = this.buffer.getContext("2d", { alpha: false });
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const lookup = this.lookup;
    let n = 0;
    for (let y = 0; y < height; y++) {
      let at = base + y * dy;
      for (let x = 0; x < width; x++) {
        pixels[n++] = lookup[voxels[at] + 32768];
        at += dx;
      }
    }
    context.putImageData(image, 0, 0);
  }

  setWindow({ slope, intercept }, { low, high }) {
    const key = `${slope} ${intercept} ${low} ${high}`;
    if (key === this.key) return;
    this.key = key;
    const scale = 255 / Math.max(high - low, 1e-6);
    for (let n = 0; n < 65536; n++) {
      const value = ((n - 32768) * slope + intercept - low) * scale;
      const grey = value <= 0 ? 0 : value >= 255 ? 255 : value | 0;
      this.lookup[n] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
  }
}
