// What was found, and where the pictures lie in the patient -> lines and letters over the panes.
//
// The same over either renderer. Cells of a heat map are drawn as the squares they are: nothing finer is known.
// Knows panes and boxes; knows nothing of pixels or of the page.

import { EDGES, VIEWS, across, clamp, coordinate, onPicture } from "./geometry.js";

const BOX = "#ffc93c";
const HEAT = "#ff5a1f";
const DOUBT = "#7fd1ff"; // a box of what cannot be said is a place to look at, not a lesion
const SLIDER = 18; // pixels at the right that are its
const FONT = "system-ui, sans-serif";

export class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** marks: [{box, heat, label, doubt, selected}] with boxes as fractions. Returns the boxes drawn, for clicks. */
  draw(panes, grid, fraction, marks, shown, corners, ratio) {
    const context = this.context;
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const drawn = [];
    for (const pane of panes) {
      context.save();
      context.beginPath();
      context.rect(...pane.clip);
      context.clip();
      for (const mark of marks) {
        if (shown.heat && mark.selected) this.heat(pane, fraction, mark);
      }
      for (const mark of marks) {
        const rect = shown.boxes || mark.selected ? this.box(pane, fraction, mark, shown.boxes, ratio) : null;
        if (rect) drawn.push({ ...rect, number: mark.number });
      }
      if (panes.length > 1) this.cross(pane, fraction, ratio);
      this.letters(pane, grid, fraction, ratio, panes.length > 1);
      this.scale(pane, ratio);
      context.restore();
    }
    this.corners(panes[0], corners, ratio);
    return drawn;
  }

  heat(pane, fraction, { heat }) {
    this.context.fillStyle = HEAT;
    for (const { low, high, weight } of heat) {
      if (!crosses(pane.axis, fraction, low, high)) continue;
      this.context.globalAlpha = 0.45 * weight;
      const { x, y, w, h } = rectangle(pane, low, high);
      this.context.fillRect(x, y, w, h);
    }
    this.context.globalAlpha = 1;
  }

  box(pane, fraction, { box: [low, high], label, doubt, selected }, lines, ratio) {
    if (!lines || !crosses(pane.axis, fraction, low, high)) return null;
    const rect = rectangle(pane, low, high);
    const context = this.context;
    const pad = 3 * ratio;
    const outline = [rect.x - pad, rect.y - pad, rect.w + 2 * pad, rect.h + 2 * pad];
    context.setLineDash(doubt ? [6 * ratio, 4 * ratio] : []);
    context.lineWidth = (selected ? 5 : 3.5) * ratio;
    context.strokeStyle = "rgb(0 0 0 / 0.55)";
    context.strokeRect(...outline);
    context.lineWidth = (selected ? 2.25 : 1.25) * ratio;
    context.strokeStyle = doubt ? DOUBT : BOX;
    context.strokeRect(...outline);
    context.setLineDash([]);
    // above the box, so that it covers nothing that was found
    const size = 12 * ratio;
    const x = clamp(outline[0], pane.clip[0] + 4 * ratio, pane.clip[0] + pane.clip[2] - this.widthOf(label, size) - 24 * ratio);
    const y = Math.max(outline[1] - 1.35 * size, pane.clip[1] + 4 * ratio);
    this.text(label, x, y, { size, colour: doubt ? DOUBT : BOX, bold: selected, top: true });
    return rect;
  }

  cross(pane, fraction, ratio) {
    const [x, y] = place(pane, fraction);
    const context = this.context;
    context.strokeStyle = "rgb(127 209 255 / 0.55)";
    context.lineWidth = ratio;
    const gap = 9 * ratio;
    const [left, top, width, height] = pane.clip;
    context.beginPath();
    for (const [from, to] of [[left, x - gap], [x + gap, left + width]]) {
      if (to > from) context.moveTo(from, y), context.lineTo(to, y);
    }
    for (const [from, to] of [[top, y - gap], [y + gap, top + height]]) {
      if (to > from) context.moveTo(x, from), context.lineTo(x, to);
    }
    context.stroke();
  }

  letters(pane, grid, fraction, ratio, several) {
    const [left, top, width, height] = pane.clip;
    const edges = EDGES[VIEWS[pane.axis]];
    const size = 14 * ratio;
    const inset = 6 * ratio;
    const middle = { x: left + width / 2, y: top + height / 2 };
    this.text(edges[0], left + inset, middle.y, { size, bold: true });
    this.text(edges[1], left + width - inset - SLIDER * ratio, middle.y, { size, bold: true, align: "right" });
    this.text(edges[2], middle.x, top + inset, { size, bold: true, align: "center", top: true });
    this.text(edges[3], middle.x, top + height - inset - size, { size, bold: true, align: "center", top: true });
    if (several) {
      const where = coordinate(pane.axis, grid.mmOfFraction(fraction)[pane.axis]);
      this.text(where, left + inset, top + height - inset - size, { size: 11.5 * ratio, top: true });
    }
  }

  scale(pane, ratio) {
    const [left, top, width, height] = pane.clip;
    const length = 50 * pane.pixelsPerMm;
    if (length > width * 0.6) return;
    const context = this.context;
    const [right, bottom] = [left + width - 10 * ratio, top + height - 10 * ratio];
    for (const [colour, thick] of [["rgb(0 0 0 / 0.7)", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick * ratio;
      context.beginPath();
      context.moveTo(right - length, bottom);
      context.lineTo(right, bottom);
      context.stroke();
    }
    this.text("50 mm", right, bottom - 16 * ratio, { size: 10.5 * ratio, align: "right", top: true });
  }

  corners(pane, lines, ratio) {
    const [left, top, width] = pane.clip;
    const size = 12 * ratio;
    const inset = 8 * ratio;
    lines.left.forEach((line, n) => this.text(line, left + inset, top + inset + n * 1.4 * size, { size, top: true }));
    lines.right.forEach((line, n) =>
      this.text(line, left + width - inset, top + inset + n * 1.4 * size, { size, align: "right", top: true }),
    );
  }

  widthOf(words, size) {
    this.context.font = `650 ${size}px ${FONT}`;
    return this.context.measureText(words).width;
  }

  text(words, x, y, { size, bold = false, align = "left", top = false, colour = "#fff" }) {
    const context = this.context;
    context.font = `${bold ? "650 " : ""}${size}px ${FONT}`;
    context.textAlign = align;
    context.textBaseline = top ? "top" : "middle";
    context.lineWidth = size / 4;
    context.lineJoin = "round";
    context.strokeStyle = "rgb(0 0 0 / 0.8)";
    context.strokeText(words, x, y);
    context.fillStyle = colour;
    context.fillText(words, x, y);
  }
}

/** Whether a plane across `axis` at this place goes through a box of fractions. */
export function crosses(axis, fraction, low, high) {
  return low[axis] <= fraction[axis] + 1e-9 && fraction[axis] - 1e-9 <= high[axis];
}

function place({ axis, left, top, width, height }, fraction) {
  const [x, y] = onPicture(axis, fraction);
  return [left + x * width, top + y * height];
}

function rectangle(pane, low, high) {
  const [x, y] = place(pane, high);
  const [right, bottom] = place(pane, low);
  return { x, y, w: right - x, h: bottom - y };
}

/** The place under a point of the canvas, at the depth where the pane is. */
export function fractionAt(pane, x, y, fraction) {
  const [right, up] = across(pane.axis);
  const moved = [...fraction];
  moved[right] = 1 - (x - pane.left) / pane.width;
  moved[up] = 1 - (y - pane.top) / pane.height;
  return moved;
}
