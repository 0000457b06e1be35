// The evidence of a draft and the sentences on the page -> images beside them, each following the other.
//
// Looks for #viewer, asks for its evidence, and draws; a click on a sentence shows where it was seen, a click on
// a box marks its sentence. Asks its own server only, and writes nothing. The page may change its sentences at
// any time: they are found again at every click.

import { clamp } from "./geometry.js";
import { Stage } from "./stage.js";
import { Volume, words as serverWords } from "./volume.js";
import { WORDS } from "./words.js";

const PLANES = "./viewer-planes.js";

class Viewer {
  constructor(root) {
    this.root = root;
    this.lang = root.dataset.lang === "zh" || document.documentElement.lang.startsWith("zh") ? "zh" : "en";
    this.words = WORDS[this.lang];
    this.volumes = new Map(); // by number of the series
    this.evidence = null;
    this.selected = null; // number of a finding
    this.linked = true;
    this.offset = 0; // mm, of the prior against the current
    this.shown = { boxes: true, heat: false };
    this.build();
  }

  build() {
    const { root, words } = this;
    root.classList.add("v-root");
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", words.images);
    this.toolbar = element("div", { className: "v-bar", role: "toolbar", "aria-label": words.images });
    this.stages = element("div", { className: "v-stages" });
    this.caption = element("div", {
      className: "v-caption",
      "aria-live": "polite",
      role: "region",
      "aria-label": words.finding,
      tabindex: "0", // long words scroll
    });
    root.replaceChildren(this.toolbar, this.stages, this.caption);
    this.main = new Stage(this.stages.appendChild(element("div")), words, {
      moved: () => this.follow(),
      windowed: () => this.marksWindow(),
      boxClicked: (number) => this.select(number, { fromImage: true }),
      drawn: (stage) => this.firstDrawn(stage),
      key: (key) => this.key(key),
      planesLost: () => (this.planesFail = true),
    });
    // a field that is come to by the tab key is as good as clicked; one that is clicked is not clicked twice
    document.addEventListener("pointerdown", () => (this.pointing = true), true);
    document.addEventListener("click", (event) => {
      this.pointing = false;
      this.clicked(event);
    });
    document.addEventListener("focusin", (event) => {
      if (!this.pointing && event.target.matches("input, select, textarea, [contenteditable]")) this.clicked(event);
    });
    document.addEventListener("keydown", (event) => {
      this.pointing = false;
      if (event.key === "Enter" && event.target.matches?.("[data-sentence], [data-finding]")) this.clicked(event);
    });
    for (const name of ["review:changed", "htmx:afterSettle"]) {
      document.addEventListener(name, (event) => {
        if (!root.contains(event.target)) this.changed();
      });
    }
  }

  async start() {
    if (!(await this.ask())) return;
    const current = this.evidence.series.filter((one) => one.kind === "current");
    this.controls();
    if (!current.length) return this.say(this.words.noSeries);
    this.reachable();
    const first = this.evidence.findings.find((f) => f.presence === "present" && f.evidence) ??
      this.evidence.findings.find((f) => f.evidence);
    if (first) this.select(first.n);
    else this.showSeries(current[0].k);
  }

  /** The evidence, new; false where the server has none, and then it says why. */
  async ask() {
    const answer = await fetch(this.root.dataset.evidence, { credentials: "same-origin" });
    if (!answer.ok) {
      this.say((await serverWords(answer)) || this.words.noImages);
      return false;
    }
    this.evidence = await answer.json();
    return true;
  }

  /** Somebody changed the report: boxes and numbers follow; the images stay where they are. */
  changed() {
    clearTimeout(this.asking);
    this.asking = setTimeout(async () => {
      const series = this.evidence?.series;
      if (!(await this.ask())) return;
      // the grids that were made stay
      if (series?.length === this.evidence.series.length) this.evidence.series = series;
      this.reachable();
      this.marks();
      if (this.selected && !this.finding(this.selected)) this.selected = null;
      this.describe();
      this.highlight();
    }, 150);
  }

  finding(number) {
    return this.evidence.findings.find((f) => f.n === number) ?? null;
  }

  series(k) {
    return this.evidence.series.find((one) => one.k === k);
  }

  say(message) {
    this.main.message = message;
    this.main.redraw();
    this.main.note.textContent = message;
  }

  // --- what is shown

  showSeries(k, keepPlace = false) {
    const one = this.series(k);
    if (!one) return;
    const stage = this.main;
    stage.title = nameOf(one, this.words);
    stage.subtitle = one.role && one.description ? one.description : "";
    stage.show(one, this.volume(one, stage), { keepPlace });
    const window = one.windows[0];
    this.setWindow(this.windowOf(one) ?? window);
    this.marks();
    if (this.picker) this.picker.value = String(k);
    this.windowButtons(one);
    if (this.main.mode === "planes") this.planes();
  }

  /** The window that was used for the series last. */
  windowOf(one) {
    return one.window ?? null;
  }

  setWindow(window) {
    const one = this.main.series;
    one.window = window;
    const auto = window.low === null ? (this.main.volume?.window ?? window) : window;
    this.main.window = { low: auto.low, high: auto.high };
    if (this.prior && this.prior.series?.modality === one.modality) this.windowPrior();
    this.main.redraw();
    this.marksWindow();
  }

  windowPrior() {
    const own = this.prior.volume?.window;
    const same = this.main.series.modality === "CT";
    this.prior.window = same ? { ...this.main.window } : own ? { ...own } : { ...this.main.window };
    this.prior.redraw();
  }

  marksWindow() {
    const { low, high } = this.main.window;
    for (const button of this.toolbar.querySelectorAll("[data-window]")) {
      const window = this.main.series?.windows.find((w) => w.key === button.dataset.window);
      const auto = window?.low === null ? this.main.volume?.window : window;
      const on = window?.low === null && low === null ? true : auto && auto.low === low && auto.high === high;
      button.setAttribute("aria-pressed", String(Boolean(on)));
    }
    if (this.prior && this.main.series?.modality === "CT") this.windowPrior();
  }

  /** The voxels of a series, asked for once. */
  volume(one, stage) {
    const known = this.volumes.get(one.k);
    if (known) return known;
    const volume = new Volume();
    this.volumes.set(one.k, volume);
    const arrived = () => {
      const shown = [this.main, this.prior].find((s) => s?.volume === volume);
      if (!shown) return;
      if (!one.grid && volume.grid) {
        one.grid = volume.grid;
        if (shown === this.prior) this.follow();
        else shown.snap();
      }
      if (volume.window && shown.window.low === null) {
        if (shown === this.main) this.setWindow(one.window ?? one.windows[0]);
        else this.windowPrior();
      }
      shown.redraw();
    };
    const begin = () =>
      volume.load(one.volume, arrived).then(
        () => {
          arrived();
          if (this.main.volume === volume && this.main.mode === "planes") this.planes();
        },
        (error) => {
          this.volumes.delete(one.k);
          stage.message = error.message || this.words.noImages;
          stage.redraw();
        },
      );
    // the one slice that is looked at goes first, and has the server for itself
    if (one.slices) stage.afterPicture = begin;
    else begin();
    return volume;
  }

  marks() {
    const k = this.main.series?.k;
    const marks = this.evidence.findings
      .filter((f) => f.evidence && f.evidence.series === k)
      // what cannot be said is shown when it is asked for: a box around half a lung covers the lesion in it
      .filter((f) => f.presence === "present" || f.n === this.selected)
      .map((f) => ({
        number: f.n,
        label: f.presence === "present" ? f.term : `${f.term} ?`,
        doubt: f.presence !== "present",
        selected: f.n === this.selected,
        box_mm: f.evidence.box_mm,
        heat_mm: f.evidence.heat,
      }));
    marks.sort((one, other) => one.selected - other.selected);
    this.main.marks = marks;
    this.main.shown = this.shown;
    this.main.redraw();
  }

  // --- sentences and findings

  /** Number of a finding: its slice, its window, its words. */
  select(number, { fromImage = false } = {}) {
    const finding = this.finding(number);
    if (!finding) return;
    this.selected = number;
    const { evidence } = finding;
    if (evidence) {
      const other = this.main.series?.k !== evidence.series;
      if (other) this.showSeries(evidence.series);
      const one = this.main.series;
      const window = one.windows.find((w) => w.key === finding.window);
      if (window && !fromImage) this.setWindow(window);
      this.marks();
      if (!fromImage) {
        const grid = this.main.grid;
        const middle = [0, 1, 2].map((axis) => (evidence.box_mm[0][axis] + evidence.box_mm[1][axis]) / 2);
        this.main.lookAt(grid.fractionOfMm(middle), evidence.slice);
      }
    } else {
      this.marks();
    }
    this.describe();
    this.highlight(fromImage);
  }

  clicked(event) {
    if (!this.evidence || this.root.contains(event.target)) return;
    const holder = event.target.closest?.("[data-sentence], [data-finding]");
    if (!holder) return;
    const numbers = this.numbersOf(holder);
    if (!numbers.length) {
      this.selected = null;
      this.marks();
      this.describe(true);
      this.highlight();
      return;
    }
    const placed = numbers.filter((n) => this.finding(n)?.evidence);
    const among = placed.length ? placed : numbers;
    // again on the same sentence: the next of its findings
    const again = event.type === "click" && holder === this.holder;
    const next = again ? (among.indexOf(this.selected) + 1) % among.length : 0;
    this.holder = holder;
    this.select(among[Math.max(0, next)]);
  }

  /** Of a sentence or of a row on the page. */
  numbersOf(holder) {
    const { findings, sentence, finding, findingNumber } = holder.dataset;
    if (findingNumber) return [Number(findingNumber)];
    if (findings !== undefined) return findings.split(/\s+/).filter(Boolean).map(Number);
    if (finding) return this.evidence.findings.filter((f) => f.code === finding).map((f) => f.n);
    return this.evidence.sentences.find((s) => s.n === Number(sentence))?.findings ?? [];
  }

  highlight(scroll = false) {
    let first = true;
    for (const holder of document.querySelectorAll("[data-sentence], [data-finding]")) {
      const on = this.selected !== null && this.numbersOf(holder).includes(this.selected);
      if (on) holder.setAttribute("aria-current", "true");
      else holder.removeAttribute("aria-current");
      if (on && first && scroll) holder.scrollIntoView({ block: "nearest" });
      if (on) first = false;
    }
  }

  /** What nobody can reach by the tab key is made reachable. */
  reachable() {
    for (const holder of document.querySelectorAll("[data-sentence], [data-finding]")) {
      const inside = holder.querySelector("a, button, input, select, textarea, [tabindex]");
      const itself = holder.matches("a, button, input, select, textarea, [tabindex], [contenteditable]");
      if (!inside && !itself && this.numbersOf(holder).length) holder.tabIndex = 0;
    }
  }

  describe(nothing = false) {
    const { words } = this;
    const finding = this.selected === null ? null : this.finding(this.selected);
    if (!finding) {
      this.caption.replaceChildren(nothing ? element("p", {}, words.noPlace) : "");
      return;
    }
    const sentence = this.evidence.sentences.find((s) => s.findings.includes(finding.n));
    const facts = [finding.presence === "cannot say" ? words.doubt : words[finding.presence]];
    if (finding.confidence !== null) facts.push(`${words.confidence} ${percent(finding.confidence)}`);
    const rank = finding.evidence?.faithfulness_rank;
    if (rank !== null && rank !== undefined) facts.push(words.faithful(Math.round(100 * rank)));
    if (!finding.evidence) facts.push(words.noPlace);
    const lines = [
      element("p", { className: "v-said", lang: sentence?.lang ?? "" }, sentence?.text ?? finding.term),
      element("p", { className: "v-facts" }, facts.join(" · ")),
    ];
    if (finding.compared) lines.push(element("p", { className: "v-facts" }, `${words.measured}: ${finding.compared}`));
    this.caption.replaceChildren(...lines);
  }

  stepFinding(by) {
    const placed = this.evidence.findings.filter((f) => f.evidence);
    // as a radiologist would ask: what is there first, then what cannot be said
    placed.sort((one, other) => (one.presence !== "present") - (other.presence !== "present"));
    if (!placed.length) return;
    const at = placed.findIndex((f) => f.n === this.selected);
    const next = at < 0 ? 0 : (at + by + placed.length) % placed.length;
    this.select(placed[next].n);
    this.highlight(true);
  }

  // --- controls

  controls() {
    const { words } = this;
    const { series } = this.evidence;
    const current = series.filter((one) => one.kind === "current");
    const parts = [];
    if (current.length > 1) {
      const options = current.map((one) => element("option", { value: one.k }, nameOf(one, words)));
      this.picker = element("select", { "aria-label": words.series }, ...options);
      this.picker.addEventListener("change", () => this.showSeries(Number(this.picker.value), true));
      parts.push(this.picker);
    }
    this.modes = group(words.view, [
      button(words.stack, () => this.setMode("stack"), { "data-mode": "stack", "aria-pressed": "true" }),
      button(words.planes, () => this.setMode("planes"), { "data-mode": "planes", "aria-pressed": "false" }),
    ]);
    this.windows = group(words.window, []);
    const toggles = group(words.finding, [
      this.toggle("boxes", words.boxes),
      this.toggle("heat", words.heat),
    ]);
    const steps = group(words.finding, [
      button("‹", () => this.stepFinding(-1), { "aria-label": words.previous, title: `${words.previous} (p)` }),
      button("›", () => this.stepFinding(1), { "aria-label": words.next, title: `${words.next} (n)` }),
    ]);
    parts.push(this.modes, this.windows, toggles, steps);
    if (this.evidence.prior?.at_hand && series.some((one) => one.kind === "prior")) {
      this.priorButton = button(words.prior, () => this.togglePrior(), { "aria-pressed": "false", "data-prior": "" });
      parts.push(group(words.prior, [this.priorButton]));
    }
    const rows = words.keys.map(([key, what]) =>
      element("div", {}, element("dt", {}, key), element("dd", {}, what)));
    const help = element("details", { className: "v-help" }, element("summary", {}, words.help), element("dl", {}, ...rows));
    this.toolbar.replaceChildren(...parts, help);
  }

  windowButtons(one) {
    const buttons = one.windows.map((window, n) =>
      button(window.name, () => this.setWindow(window), {
        "data-window": window.key,
        "aria-pressed": "false",
        title: `${window.name} (${n + 1})`,
      }),
    );
    this.windows.replaceChildren(...buttons);
    this.marksWindow();
  }

  toggle(what, name) {
    const made = button(name, () => this.flip(what), { "aria-pressed": String(this.shown[what]), "data-toggle": what });
    made.title = `${name} (${what[0]})`;
    return made;
  }

  flip(what) {
    this.shown[what] = !this.shown[what];
    this.toolbar.querySelector(`[data-toggle=${what}]`).setAttribute("aria-pressed", String(this.shown[what]));
    this.marks();
  }

  setMode(mode) {
    this.main.mode = mode;
    for (const one of this.modes.children) one.setAttribute("aria-pressed", String(one.dataset.mode === mode));
    if (mode === "planes") this.planes();
    else this.main.snap();
    this.main.redraw();
  }

  /** NiiVue comes when the planes are first asked for; without WebGL 2 the painter draws them. */
  async planes() {
    const stage = this.main;
    if (!stage.volume?.complete || this.planesFail) return stage.redraw();
    if (!this.planesAre) this.planesAre = this.makePlanes();
    const planes = await this.planesAre;
    if (!planes) return stage.redraw();
    await planes.show(stage.volume, stage.window);
    if (planes.volume === stage.volume) stage.planes = planes;
    stage.redraw();
  }

  async makePlanes() {
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) {
      this.planesFail = true;
      this.caption.append(element("p", { className: "v-facts" }, this.words.noWebgl));
      return null;
    }
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    const { Planes } = await import(PLANES);
    return Planes.on(this.main.glCanvas);
  }

  // --- the prior, side by side

  togglePrior() {
    const on = !this.prior;
    this.priorButton.setAttribute("aria-pressed", String(on));
    this.root.classList.toggle("v-two", on);
    if (!on) {
      this.priorBox.remove();
      this.prior = null;
      this.main.redraw();
      return;
    }
    const { words } = this;
    const one = this.evidence.series.find((s) => s.kind === "prior" && s.modality === this.main.series?.modality) ??
      this.evidence.series.find((s) => s.kind === "prior");
    const holder = element("div");
    const link = element("input", { type: "checkbox", checked: "" });
    link.checked = this.linked;
    link.addEventListener("change", () => {
      this.linked = link.checked;
      if (this.linked) this.offset = this.placeOf(this.prior) - this.placeOf(this.main);
    });
    const rows = (this.evidence.prior?.comparisons ?? []).map((c) =>
      element("li", {}, element("b", {}, c.term), ` ${c.change ?? words.unchanged}: ${c.words}`));
    this.priorBox = element("div", { className: "v-prior" }, holder,
      element("div", { className: "v-compared", role: "region", "aria-label": words.measured, tabindex: "0" },
        element("label", {}, link, ` ${words.priorLinked}`),
        element("ul", {}, ...rows)));
    this.stages.append(this.priorBox);
    this.prior = new Stage(holder, words, {
      moved: () => {
        // by hand: from here on they go together from where they are
        if (this.linked && !this.following) this.offset = this.placeOf(this.prior) - this.placeOf(this.main);
      },
      key: (key) => this.key(key),
    });
    const date = this.evidence.prior?.study_date ?? "";
    this.prior.title = `${words.prior} ${dated(date, words)}`.trim();
    this.prior.show(one, this.volume(one, this.prior));
    this.windowPrior();
    this.follow();
  }

  /** Along the stack of the current images, in mm. */
  placeOf(stage) {
    const axis = this.main.grid.stack;
    return stage.grid ? stage.grid.mmOfFraction(stage.fraction)[axis] : 0;
  }

  follow() {
    const { prior, main } = this;
    if (!prior?.grid || !main.grid || !this.linked || this.following) return;
    const axis = main.grid.stack;
    if (!this.aligned) {
      this.aligned = true;
      this.offset = firstOffset(main.grid, prior.grid, axis);
    }
    const mm = main.grid.mmOfFraction(main.fraction);
    mm[axis] += this.offset;
    this.following = true;
    prior.fraction = prior.grid.fractionOfMm(mm).map((value) => clamp(value, 0, 1));
    prior.snap();
    prior.redraw();
    this.following = false;
  }

  key(key) {
    const window = this.main.series?.windows[Number(key) - 1];
    if (window) this.setWindow(window);
    else if (key === "b") this.flip("boxes");
    else if (key === "h") this.flip("heat");
    else if (key === "n") this.stepFinding(1);
    else if (key === "p") this.stepFinding(-1);
    else if (key === "m") this.setMode(this.main.mode === "stack" ? "planes" : "stack");
    else if (key === "c" && this.priorButton) this.togglePrior();
    else return false;
    return true;
  }

  firstDrawn() {
    // since the page was asked for, for whoever measures
    this.root.dataset.firstSliceMs ??= Math.round(performance.now());
  }
}

/** 0 where the two examinations lie in one place of the table; else middle on middle. */
function firstOffset(grid, prior, axis) {
  const range = (g) => [0, 1].map((f) => g.mmOfFraction([0.5, 0.5, 0.5].map((v, n) => (n === axis ? f : v)))[axis]).sort((a, b) => a - b);
  const [[low, high], [from, to]] = [range(grid), range(prior)];
  const shared = Math.min(high, to) - Math.max(low, from);
  return shared > 0.6 * Math.min(high - low, to - from) ? 0 : (from + to - low - high) / 2;
}

/** Nothing is certain. */
function percent(share) {
  return share > 0.99 ? "> 99 %" : share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

function nameOf(one, words) {
  const name = [one.role || one.modality, one.role ? "" : one.description].filter(Boolean).join(" ");
  return name || `${words.series} ${one.k + 1}`;
}

function dated(date, words) {
  return /^\d{8}$/.test(date) ? words.dated(`${date.slice(0, 4)}-${date.slice(4, 6)}-${date.slice(6)}`) : "";
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "className") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function button(name, act, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, name);
  made.addEventListener("click", act);
  return made;
}

function group(name, buttons) {
  return element("div", { role: "group", "aria-label": name, className: "v-group" }, ...buttons);
}

const root = document.getElementById("viewer");
if (root) {
  const viewer = new Viewer(root);
  viewer.start();
}
