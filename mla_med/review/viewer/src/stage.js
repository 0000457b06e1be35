// One series, a place in it and a window -> canvases that show it, and the hand on wheel, mouse and keys.
//
// Two canvases lie on each other for the pixels (2-D for the stack, WebGL for the planes) and one for what is
// drawn above. Everything is drawn once a frame at most, however fast the wheel turns. Knows one series at a
// time; knows nothing of the report: it says what was clicked.

import { Grid, across, clamp, coordinate } from "./geometry.js";
import { Overlay, fractionAt } from "./overlay.js";
import { Painter } from "./painter.js";

const WHEEL_STEP = 40; // pixels of a trackpad for one slice
const NOTCH = 110; // pixels of a wheel's notch: 100 or 120, by the system
const DRAG_STEP = 6; // pixels of a drag for one slice
const MOST_PICTURES = 64;
const PICTURE_MS = 2000; // the volume waits so long for the first picture, and no longer

export class Stage {
  /** on: {moved(stage), boxClicked(number), windowed(window), stepped(direction)}. */
  constructor(root, words, on) {
    this.root = root;
    this.words = words;
    this.on = on;
    this.series = null;
    this.volume = null;
    this.fraction = [0.5, 0.5, 0.5];
    this.window = { low: -160, high: 240 };
    this.mode = "stack";
    this.planes = null;
    this.marks = [];
    this.shown = { boxes: true, heat: false };
    this.zoom = 1;
    this.pan = [0, 0];
    this.pictures = new Map(); // pictures that the server made, by slice and window, while the volume comes
    this.panes = [];
    this.drawnBoxes = [];
    this.pointer = null;
    this.message = "";
    this.build();
  }

  build() {
    const made = (tag, className) => this.root.appendChild(Object.assign(document.createElement(tag), { className }));
    this.root.classList.add("v-stage");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "application");
    this.root.setAttribute("aria-roledescription", this.words.images);
    this.glCanvas = made("canvas", "v-gl");
    this.canvas = made("canvas", "v-2d");
    this.overCanvas = made("canvas", "v-over");
    for (const canvas of [this.glCanvas, this.canvas, this.overCanvas]) canvas.setAttribute("aria-hidden", "true");
    this.slider = made("input", "v-slider");
    this.slider.type = "range";
    this.slider.min = 1;
    this.slider.setAttribute("aria-label", this.words.slice);
    this.slider.addEventListener("input", () => this.goTo(Number(this.slider.value) - 1));
    this.note = made("p", "v-note");
    this.bar = made("div", "v-progress");
    this.painter = new Painter(this.canvas);
    this.overlay = new Overlay(this.overCanvas);
    this.glCanvas.addEventListener("webglcontextlost", () => {
      this.planes = null; // the painter goes on
      this.on.planesLost?.();
      this.redraw();
    });
    new ResizeObserver(() => this.redraw()).observe(this.root);
    this.listen();
  }

  get grid() {
    return this.volume?.grid ?? this.series?.grid ?? null;
  }

  get slice() {
    return this.grid ? this.grid.sliceOfFraction(this.fraction) : 0;
  }

  /** Another series; its grid is known from the certificate, or when the first bytes of it come. */
  show(series, volume, { keepPlace = false } = {}) {
    const mm = keepPlace && this.grid ? this.grid.mmOfFraction(this.fraction) : null;
    this.series = series;
    this.volume = volume;
    if (series.shape && !series.grid) series.grid = new Grid(series.shape, series.affine);
    this.pictures.clear();
    this.zoom = 1;
    this.pan = [0, 0];
    const fraction = mm && this.grid ? this.grid.fractionOfMm(mm) : [0.5, 0.5, 0.5];
    this.fraction = fraction.map((value) => clamp(value, 0, 1));
    this.message = "";
    if (this.grid) this.snap();
    this.redraw();
  }

  /** To the middle of the slice, so that what is shown is a slice and nothing between two. */
  snap() {
    this.fraction = [...this.fraction];
    this.fraction[this.grid.stack] = this.grid.fractionOfSlice(this.slice);
  }

  goTo(slice) {
    if (!this.grid) return;
    this.fraction = [...this.fraction];
    this.fraction[this.grid.stack] = this.grid.fractionOfSlice(clamp(slice, 0, this.grid.slices - 1));
    this.moved();
  }

  /** To a place: in the stack its slice. */
  lookAt(fraction, slice) {
    this.fraction = fraction.map((value) => clamp(value, 0, 1));
    if (slice !== undefined) this.fraction[this.grid.stack] = this.grid.fractionOfSlice(slice);
    else this.snap();
    this.moved();
  }

  /** Onwards as one reads: to the feet, to the back, to the left; whichever way the slices are numbered. */
  step(by, axis = this.grid?.stack) {
    if (!this.grid) return;
    if (axis === this.grid.stack) return this.goTo(this.slice + (this.grid.flip[axis] ? by : -by));
    const next = clamp(this.grid.indexAt(axis, this.fraction) - by, 0, this.grid.dims[axis] - 1);
    this.fraction = [...this.fraction];
    this.fraction[axis] = (next + 0.5) / this.grid.dims[axis];
    this.moved();
  }

  moved() {
    // asked for now, and not when the next frame is drawn
    if (this.series.slices && !this.volume?.has(this.slice)) this.picture(this.slice);
    this.redraw();
    this.on.moved?.(this);
  }

  /** `pixels`: not only what is drawn above them. */
  redraw(pixels = true) {
    this.stale ||= pixels;
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      const stale = this.stale;
      this.stale = false;
      this.draw(stale);
    });
  }

  draw(pixels) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.root.clientWidth, this.root.clientHeight].map((n) => Math.round(n * ratio));
    if (!width || !height) return;
    for (const canvas of [this.glCanvas, this.canvas, this.overCanvas]) {
      if (canvas.width !== width || canvas.height !== height) {
        Object.assign(canvas, { width, height });
        pixels = true;
      }
    }
    const grid = this.grid;
    this.note.textContent = this.message;
    if (!grid) return this.painter.clear();
    this.panes = this.layout(width, height, ratio);
    const gpu = this.mode === "planes" && this.planes !== null && this.volume?.complete;
    this.canvas.hidden = gpu;
    this.glCanvas.hidden = !gpu;
    if (pixels) this.drawn = gpu ? this.drawPlanes() : this.drawStack();
    const corners = this.cornerWords();
    const marks = this.marks.map((mark) => this.onGrid(mark));
    this.drawnBoxes = this.overlay.draw(this.panes, grid, this.fraction, marks, this.shown, corners, ratio);
    this.state(gpu, this.drawn);
  }

  drawPlanes() {
    this.planes.draw(this.panes, this.fraction, this.window);
    return true;
  }

  drawStack() {
    const slice = this.slice;
    this.painter.clear();
    let drawn = 0;
    for (const pane of this.panes) {
      const whole = this.volume?.complete;
      if (whole || (pane.axis === this.grid.stack && this.volume?.has(slice))) {
        this.painter.drawVolume(this.volume, pane.axis, this.fraction, this.window, pane);
        drawn++;
      } else if (pane.axis === this.grid.stack && this.series.slices) {
        const picture = this.picture(slice);
        if (picture) this.painter.drawPicture(picture, pane), drawn++;
      }
    }
    return drawn > 0;
  }

  /** The slice as the server draws it, until the volume is here; null while it comes, or where it does not. */
  picture(slice) {
    const { low, high } = this.window;
    const windowed = low === null || low === undefined ? "" : `?low=${low}&high=${high}`;
    const address = `${this.series.slices}${slice}.png${windowed}`;
    const known = this.pictures.get(address);
    if (known === undefined) {
      const picture = new Image();
      this.pictures.set(address, null);
      picture.onload = () => {
        this.pictures.set(address, picture);
        this.pictured();
        this.redraw();
      };
      picture.onerror = () => {
        this.pictures.set(address, false); // the volume will say why
        this.pictured();
      };
      setTimeout(() => this.pictured(), PICTURE_MS);
      picture.src = address;
      if (this.pictures.size > MOST_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
      return null;
    }
    return known || null;
  }

  pictured() {
    this.afterPicture?.();
    this.afterPicture = null;
  }

  /** Where each picture lies: edge to edge in its pane in the planes, zoomed and moved in the stack. */
  layout(width, height, ratio) {
    if (this.mode !== "planes") return [this.pane(this.grid.stack, [0, 0, width, height], ratio)];
    const others = across(this.grid.stack).reverse();
    const gap = Math.round(2 * ratio);
    const wide = width >= height;
    const main = Math.round((wide ? width : height) * 0.6);
    const side = (wide ? width : height) - main - gap;
    const half = Math.round(((wide ? height : width) - gap) / 2);
    const tiles = wide
      ? [[0, 0, main, height], [main + gap, 0, side, half], [main + gap, half + gap, side, half]]
      : [[0, 0, width, main], [0, main + gap, half, side], [half + gap, main + gap, half, side]];
    return [this.grid.stack, ...others].map((axis, n) => this.pane(axis, tiles[n], ratio));
  }

  pane(axis, clip, ratio) {
    const [left, top, width, height] = clip;
    const [wideMm, highMm] = this.grid.sizeMm(axis);
    const zoomed = this.mode === "stack";
    const fit = Math.min(width / wideMm, height / highMm);
    const pixelsPerMm = fit * (zoomed ? this.zoom : 1);
    const [w, h] = [Math.round(wideMm * pixelsPerMm), Math.round(highMm * pixelsPerMm)];
    const [x, y] = zoomed ? this.pan.map((mm) => mm * pixelsPerMm) : [0, 0];
    const at = { left: Math.round(left + (width - w) / 2 + x), top: Math.round(top + (height - h) / 2 + y) };
    return { axis, clip, ...at, width: w, height: h, pixelsPerMm, ratio };
  }

  onGrid(mark) {
    if (mark.grid !== this.grid) {
      mark.grid = this.grid;
      mark.box = this.grid.fractionsOfBox(mark.box_mm);
      mark.heat = mark.heat_mm.map(([low, high, weight]) => {
        const [from, to] = this.grid.fractionsOfBox([low, high]);
        return { low: from, high: to, weight };
      });
    }
    return mark;
  }

  cornerWords() {
    const grid = this.grid;
    const where = coordinate(grid.stack, grid.mmOfFraction(this.fraction)[grid.stack]);
    const { low, high } = this.window;
    const left = [this.title, this.subtitle].filter(Boolean);
    const right = [`${this.words.slice} ${this.slice + 1} / ${grid.slices}`, where];
    if (low !== null) right.push(`L ${Math.round((low + high) / 2)}  W ${Math.round(high - low)}`.replaceAll("-", "−"));
    const value = this.valueUnderPointer();
    if (value !== null) right.push(value);
    return { left, right };
  }

  valueUnderPointer() {
    if (!this.pointer || !this.volume?.grid) return null;
    const pane = this.paneAt(this.pointer.x, this.pointer.y);
    if (!pane) return null;
    const place = fractionAt(pane, this.pointer.x, this.pointer.y, this.fraction);
    const value = this.volume.valueAt(this.grid.voxelOfFraction(place));
    if (value === null) return null;
    const unit = this.series.modality === "CT" ? " HU" : "";
    return `${Math.round(value)}${unit}`.replace("-", "−");
  }

  /** What a screen reader says, and what a test reads. */
  state(gpu, drawn) {
    const grid = this.grid;
    this.slider.max = grid.slices;
    this.slider.value = this.slice + 1;
    this.slider.classList.toggle("v-upwards", !grid.flip[grid.stack]); // the head is at the top
    const [main] = this.panes;
    this.slider.style.left = `calc(${(main.clip[0] + main.clip[2]) / main.ratio}px - 1.3rem)`;
    this.slider.setAttribute("aria-valuetext", `${this.slice + 1} / ${grid.slices}`);
    const words = `${this.title ?? ""}, ${this.words.slice} ${this.slice + 1} / ${grid.slices}`;
    this.root.setAttribute("aria-label", words);
    Object.assign(this.root.dataset, {
      slice: this.slice,
      slices: grid.slices,
      series: this.series.k,
      mode: this.mode,
      renderer: gpu ? "niivue" : "2d",
      complete: Boolean(this.volume?.complete),
      drawn,
      boxes: this.drawnBoxes.map((box) => box.number).join(" "),
      places: JSON.stringify(this.placesOnPage()),
    });
    const share = this.volume?.grid ? this.volume.received / this.volume.grid.slices : 0;
    this.bar.hidden = share === 1 || Boolean(this.message);
    this.bar.style.setProperty("--share", share);
    if (drawn) this.on.drawn?.(this);
  }

  /** The middle of each box, where a click meets it. */
  placesOnPage() {
    const { left, top } = this.root.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    return Object.fromEntries(
      this.drawnBoxes.map((box) => [box.number, [left + (box.x + box.w / 2) / ratio, top + (box.y + box.h / 2) / ratio]]),
    );
  }

  paneAt(x, y) {
    return this.panes.find(({ clip: [l, t, w, h] }) => x >= l && y >= t && x < l + w && y < t + h) ?? null;
  }

  listen() {
    const root = this.root;
    root.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    root.addEventListener("pointerdown", (event) => this.pressed(event));
    root.addEventListener("pointermove", (event) => this.hovered(event));
    root.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.redraw(false);
    });
    root.addEventListener("contextmenu", (event) => event.preventDefault());
    root.addEventListener("dblclick", (event) => event.target !== this.slider && this.reset());
    root.addEventListener("keydown", (event) => this.key(event));
  }

  wheel(event) {
    event.preventDefault();
    if (!this.grid) return;
    if (event.ctrlKey) return this.zoomBy(Math.exp(-event.deltaY / 300));
    const pixels = event.deltaY * (event.deltaMode === 1 ? WHEEL_STEP : event.deltaMode === 2 ? 400 : 1);
    this.wheeled = (this.wheeled ?? 0) + pixels;
    let steps = Math.trunc(this.wheeled / WHEEL_STEP);
    if (!steps) return;
    this.wheeled -= steps * WHEEL_STEP;
    // one notch of a mouse is one slice
    if (Math.abs(pixels) >= WHEEL_STEP && event.deltaMode === 0 && event.deltaY % 1 === 0) {
      steps = Math.sign(steps) * Math.max(1, Math.round(Math.abs(pixels) / NOTCH));
      this.wheeled = 0;
    }
    const pane = this.paneAt(...this.at(event));
    this.step(steps, pane?.axis);
  }

  at(event) {
    const box = this.root.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  hovered(event) {
    const [x, y] = this.at(event);
    this.pointer = { x, y };
    this.redraw(false);
  }

  /** Left: a box, or in the planes the place; drawn through the stack its slices. Right, or with shift: the
   * window. Middle, or with alt: moves. */
  pressed(event) {
    if (event.target === this.slider || !this.grid) return;
    const [x, y] = this.at(event);
    const pane = this.paneAt(x, y);
    if (!pane) return;
    const doing = event.button === 2 || event.shiftKey ? "window" : event.button === 1 || event.altKey ? "pan" : "point";
    const start = { x, y, window: { ...this.window }, pan: [...this.pan] };
    let stepped = 0;
    let far = false;
    this.root.setPointerCapture(event.pointerId);
    const move = (next) => {
      const [nx, ny] = this.at(next);
      far ||= Math.hypot(nx - x, ny - y) > 4 * pane.ratio;
      if (doing === "window" && this.window.low !== null) this.dragWindow(start, (nx - x) / pane.ratio, (ny - y) / pane.ratio);
      if (doing === "pan") this.pan = [start.pan[0] + (nx - x) / pane.pixelsPerMm, start.pan[1] + (ny - y) / pane.pixelsPerMm];
      if (doing === "point" && this.mode === "planes") this.lookAt(fractionAt(pane, nx, ny, this.fraction));
      if (doing === "point" && this.mode === "stack" && far) {
        const steps = Math.trunc((ny - y) / pane.ratio / DRAG_STEP);
        if (steps !== stepped) this.step(steps - stepped);
        stepped = steps;
      }
      this.redraw();
    };
    const up = () => {
      this.root.removeEventListener("pointermove", move);
      this.root.removeEventListener("pointerup", up);
      this.root.removeEventListener("pointercancel", up);
      if (doing !== "point" || far) return;
      const hit = this.boxAt(x, y);
      if (hit !== null) this.on.boxClicked?.(hit);
      else if (this.mode === "planes") this.lookAt(fractionAt(pane, x, y, this.fraction));
    };
    this.root.addEventListener("pointermove", move);
    this.root.addEventListener("pointerup", up);
    this.root.addEventListener("pointercancel", up);
  }

  /** The smallest of the boxes there. */
  boxAt(x, y) {
    const hit = this.drawnBoxes.filter((box) => x >= box.x && y >= box.y && x <= box.x + box.w && y <= box.y + box.h);
    hit.sort((one, other) => one.w * one.h - other.w * other.h);
    return hit[0]?.number ?? null;
  }

  dragWindow(start, dx, dy) {
    const { low, high } = start.window;
    const width = Math.max(1, (high - low) * Math.exp(dx / 250));
    const level = (low + high) / 2 + (dy * (high - low)) / 400;
    this.window = { low: level - width / 2, high: level + width / 2 };
    this.on.windowed?.(this.window);
  }

  zoomBy(factor) {
    this.zoom = clamp(this.zoom * factor, 1, 12);
    if (this.zoom === 1) this.pan = [0, 0];
    this.redraw();
  }

  reset() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.redraw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.key in steps) this.step(steps[event.key]);
    else if (event.key === "Home") this.step(-Infinity);
    else if (event.key === "End") this.step(Infinity);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else if (event.key === "0") this.reset();
    else if (!this.on.key?.(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }
}
