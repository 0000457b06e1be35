// The address of a NIfTI -> its voxels, slice by slice as they come over the wire.
//
// Reads what ../../images.py writes: int16, little endian, uncompressed, columns fastest. Values stay as they
// are stored; a window is looked up. Knows the grid; knows nothing of canvases.

import { Grid } from "./geometry.js";

const HEADER_BYTES = 352;

export class Volume {
  constructor() {
    this.grid = null;
    this.voxels = null; // Int16Array
    this.received = 0; // slices
    this.bytes = null; // the whole file, for whoever wants it as one
  }

  get complete() {
    return this.grid !== null && this.received === this.grid.slices;
  }

  has(slice) {
    return slice < this.received;
  }

  /** In HU or MR units; null where the voxel has not come yet, or is none. */
  valueAt(voxel) {
    const [i, j, k] = voxel.map(Math.round);
    const [columns, rows] = this.grid?.shape ?? [0, 0];
    if (!this.grid || i < 0 || j < 0 || k < 0 || i >= columns || j >= rows || !this.has(k)) return null;
    return this.voxels[(k * rows + j) * columns + i] * this.slope + this.intercept;
  }

  /** `onProgress` is called whenever more slices are there. Throws an Error with the server's words. */
  async load(address, onProgress, signal) {
    const answer = await fetch(address, { credentials: "same-origin", signal });
    if (!answer.ok) throw new Error(await words(answer));
    const reader = answer.body.getReader();
    let head = new Uint8Array(0);
    let filled = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (this.bytes === null) {
        head = joined(head, value);
        if (head.length < HEADER_BYTES) continue;
        this.readHeader(head);
        this.bytes.set(head.subarray(0, this.bytes.length));
        filled = head.length;
      } else {
        this.bytes.set(value, filled);
        filled += value.length;
      }
      const slices = Math.floor((filled - HEADER_BYTES) / this.sliceBytes);
      if (slices > this.received) {
        this.received = slices;
        onProgress();
      }
    }
    if (!this.complete) throw new Error("The images broke off. Reload the page.");
  }

  readHeader(head) {
    const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
    const shape = [42, 44, 46].map((at) => view.getInt16(at, true));
    const affine = [280, 296, 312].map((at) => [0, 4, 8, 12].map((n) => view.getFloat32(at + n, true)));
    this.slope = view.getFloat32(112, true) || 1;
    this.intercept = view.getFloat32(116, true) || 0;
    const [low, high] = [view.getFloat32(128, true), view.getFloat32(124, true)];
    this.window = high > low ? { low, high } : null;
    this.sliceBytes = shape[0] * shape[1] * 2;
    // one buffer, voxels on an even boundary of it: 157 MB are not copied again
    this.bytes = new Uint8Array(HEADER_BYTES + this.sliceBytes * shape[2]);
    this.voxels = new Int16Array(this.bytes.buffer, HEADER_BYTES);
    this.grid = new Grid(shape, affine);
  }
}

/** What a server says in an answer that is none; empty where it says it to nobody in particular. */
export async function words(answer) {
  try {
    const { words: said } = await answer.json();
    return typeof said === "string" ? said : "";
  } catch (error) {
    if (error instanceof SyntaxError) return ""; // a page of HTML
    throw error;
  }
}

function joined(one, other) {
  const both = new Uint8Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}
