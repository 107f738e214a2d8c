// Three linked planes of a CT volume. Values come as they stand in the NIfTI; the window is applied here.
"use strict";

const about = JSON.parse(document.body.dataset.about);
const root = document.body.dataset.root;
const PLANES = { axial: 2, coronal: 1, sagittal: 0 };
// Indices run to the patient's left, back and head; a picture shows the head up.
const AXES = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] };
const LETTERS = { axial: ["R", "L", "A", "P"], coronal: ["R", "L", "S", "I"], sagittal: ["A", "P", "S", "I"] };
const TYPES = { int16: Int16Array, float32: Float32Array, uint8: Uint8Array };
const KEPT_BYTES = 192 << 20;
const AHEAD = 6;
const CANVAS = { alpha: false, willReadFrequently: true };

const state = {
  grid: null, shape: [1, 1, 1], spacing: [1, 1, 1], matrix: [], type: "int16",
  at: [0, 0, 0], center: -600, width: 1500, lungs: true, cross: true, pointer: null, large: null,
};
const $ = (id) => document.getElementById(id);

// PS3.3 C.11.2.1.2.1, LINEAR; halves round up, as everywhere in ctnode.
export function grey(value, center, width) {
  const middle = center - 0.5, span = width - 1;
  if (value <= middle - span / 2) return 0;
  if (value > middle + span / 2) return 255;
  return Math.floor(((value - middle) / (span || 1) + 0.5) * 255 + 0.5);
}

// The pixel of every value of a 16-bit volume, as it lies in the memory of a canvas.
let table = { center: NaN, width: NaN, pixels: new Uint32Array(65536) };
function pixelsOfWindow() {
  if (table.center !== state.center || table.width !== state.width) {
    const { center, width } = state, { pixels } = table;
    for (let value = -32768; value < 32768; value++) {
      pixels[value & 0xffff] = 0xff000000 | (grey(value, center, width) * 0x010101);
    }
    table = { center, width, pixels };
  }
  return table.pixels;
}

// ---- planes: fetched when they are wanted, the recent ones kept -------------------------------------------------

const kept = new Map();
let keptBytes = 0;

async function plane(name, kind, index, signal) {
  const key = `${name}/${kind}/${index}`;
  const found = kept.get(key);
  if (found) { kept.delete(key); kept.set(key, found); return found; }
  const answer = await fetch(`${root}/${about.base}/${key}`, { signal, cache: "no-store" });
  if (!answer.ok) {
    const why = await answer.json().catch(() => ({}));
    throw new Error(why.error || `the node answers ${answer.status}`);
  }
  if (answer.headers.get("content-type") !== "application/octet-stream") throw new Error("the session has ended: log in again");
  const Type = name.startsWith("lungs") ? Uint8Array : TYPES[state.type];
  const values = new Type(await answer.arrayBuffer());
  kept.set(key, values);
  keptBytes += values.byteLength;
  for (const [old, one] of kept) {
    if (keptBytes <= KEPT_BYTES) break;
    kept.delete(old);
    keptBytes -= one.byteLength;
  }
  return values;
}

function cached(name, kind, index) { return kept.get(`${name}/${kind}/${index}`); }

// Nothing else is asked for before the first picture is on the screen.
let toldPresented;
const presented = new Promise((tell) => { toldPresented = tell; });

function say(fault) { $("fault").textContent = fault ? `${fault[0].toUpperCase()}${fault.slice(1)}.` : ""; }

// ---- one plane on the screen -------------------------------------------------------------------------------------

class View {
  constructor(section) {
    this.section = section;
    this.kind = section.dataset.plane;
    this.axis = PLANES[this.kind];
    [this.across, this.down] = AXES[this.kind];
    this.canvas = section.querySelector("canvas");
    // Kept in main memory: a browser without a graphics card takes seconds for what a processor draws at once.
    this.context = this.canvas.getContext("2d", CANVAS);
    this.slider = section.querySelector("input");
    this.where = section.querySelector(".where");
    this.picture = document.createElement("canvas");
    this.zoom = 1;
    this.painted = "";
    this.shown = -1;
    this.loading = null;
    this.ahead = null;
    this.waiting = 0;
    this.direction = 1;
    ["left", "right", "top", "bottom"].forEach((side, place) => {
      section.querySelector(`.letter.${side}`).textContent = LETTERS[this.kind][place];
    });
    this.listen();
  }

  get index() { return state.at[this.axis]; }
  get columns() { return state.shape[this.across]; }
  get rows() { return state.shape[this.down]; }
  rowOf(at) { return this.kind === "axial" ? at[1] : this.rows - 1 - at[2]; }

  reset() {
    this.slider.max = state.shape[this.axis] - 1;
    this.zoom = 1;
    this.painted = "";
    this.shown = -1;
    this.picture.width = this.columns;
    this.picture.height = this.rows;
    this.pixels = this.picture.getContext("2d", CANVAS).createImageData(this.columns, this.rows);
    this.words = new Uint32Array(this.pixels.data.buffer);
    this.words.fill(0xff000000);
  }

  // Load what is wanted; an older wish that has not come yet is dropped.
  async refresh() {
    const index = this.index, grid = state.grid;
    this.slider.value = index;
    this.slider.setAttribute("aria-valuetext", `plane ${index + 1} of ${state.shape[this.axis]}`);
    const here = () => [cached(grid.ct, this.kind, index), grid.lungs ? cached(grid.lungs, this.kind, index) : null];
    let [ct, lungs] = here();
    if (ct) { this.values = ct; this.labels = lungs || null; this.shown = index; this.draw(); }
    const needsLungs = grid.lungs && state.lungs;
    if (!ct || (needsLungs && !lungs)) {
      if (this.loading) this.loading.abort();
      const loading = new AbortController();
      this.loading = loading;
      try {
        const wishes = [plane(grid.ct, this.kind, index, loading.signal)];
        if (needsLungs) wishes.push(plane(grid.lungs, this.kind, index, loading.signal));
        // When the first is dropped nobody waits for the second any more.
        for (const wish of wishes) wish.catch(() => {});
        // The CT is shown as soon as it is there, its lungs when they come.
        ct = await wishes[0];
        if (state.grid === grid && this.index === index) {
          this.values = ct; this.labels = null; this.shown = index; this.draw();
        }
        if (wishes[1]) {
          lungs = await wishes[1];
          if (state.grid === grid && this.index === index) { this.labels = lungs; this.draw(); }
        }
        say("");
      } catch (error) {
        if (error.name !== "AbortError") say(error.message);
        return;
      } finally {
        if (this.loading === loading) this.loading = null;
      }
    }
    this.look(index, grid);
  }

  // Fetch the next planes in the direction of scrolling, one after the other.
  async look(index, grid) {
    if (this.ahead) this.ahead.abort();
    const ahead = new AbortController();
    this.ahead = ahead;
    await presented;
    const steps = [];
    for (let step = 1; step <= AHEAD; step++) steps.push(step * this.direction);
    steps.push(-this.direction, -2 * this.direction);
    try {
      for (const step of steps) {
        const next = index + step;
        if (next < 0 || next >= state.shape[this.axis] || ahead.signal.aborted || state.grid !== grid) continue;
        const wishes = [plane(grid.ct, this.kind, next, ahead.signal)];
        if (grid.lungs && state.lungs) wishes.push(plane(grid.lungs, this.kind, next, ahead.signal));
        await Promise.all(wishes);
      }
    } catch { /* whoever wants the plane will ask again and be told */ }
  }

  paint() {
    const key = [this.shown, state.center, state.width, state.lungs && !!this.labels, state.grid.ct].join();
    if (this.painted === key || !this.values) return;
    this.painted = key;
    const { values, words } = this;
    if (values instanceof Int16Array) {
      const pixels = pixelsOfWindow();
      for (let at = 0; at < values.length; at++) words[at] = pixels[values[at] & 0xffff];
    } else {
      for (let at = 0; at < values.length; at++) {
        words[at] = 0xff000000 | (grey(values[at], state.center, state.width) * 0x010101);
      }
    }
    if (state.lungs && this.labels) this.tint(this.labels);
    this.picture.getContext("2d", CANVAS).putImageData(this.pixels, 0, 0);
  }

  // A breath of colour inside.
  tint(labels) {
    const bytes = this.pixels.data;
    for (let at = 0; at < labels.length; at++) {
      const colour = labels[at] && about.labels[labels[at]]?.colour;
      if (!colour) continue;
      for (let part = 0; part < 3; part++) bytes[4 * at + part] += (colour[part] - bytes[4 * at + part]) * 0.16;
    }
  }

  // The borders of the labels along the edges of their voxels, drawn as fine on every plane however thick its voxels.
  contours() {
    if (this.traced === this.labels) return this.paths;
    this.traced = this.labels;
    this.paths = new Map();
    const { labels, columns, rows } = this;
    const line = (label, x, y, toX, toY) => {
      if (!this.paths.has(label)) this.paths.set(label, new Path2D());
      const path = this.paths.get(label);
      path.moveTo(x, y);
      path.lineTo(toX, toY);
    };
    // Runs of edges along rows, then along columns, each one line. Plain loops: a plane has half a million edges.
    const trace = (outer, inner, outerStep, innerStep, add) => {
      for (let lane = 0; lane < outer; lane++) {
        for (let side = 0; side < 2; side++) {
          const beyond = lane === (side ? outer - 1 : 0), other = side ? outerStep : -outerStep;
          let begun = -1, of = 0, place = lane * outerStep;
          for (let at = 0; at < inner; at++, place += innerStep) {
            const here = labels[place];
            const edge = here && (beyond || labels[place + other] !== here) ? here : 0;
            if (edge === of) continue;
            if (of) add(of, lane + side, begun, at);
            begun = at;
            of = edge;
          }
          if (of) add(of, lane + side, begun, inner);
        }
      }
    };
    trace(rows, columns, columns, 1, (label, y, from, to) => line(label, from, y, to, y));
    trace(columns, rows, 1, columns, (label, x, from, to) => line(label, x, from, x, to));
    return this.paths;
  }

  drawLungs(at, ratio) {
    const place = new DOMMatrix([at.width / this.columns, 0, 0, at.height / this.rows, at.x, at.y]);
    this.context.lineWidth = 1.5 * ratio;
    for (const [label, path] of this.contours()) {
      const colour = about.labels[label]?.colour;
      if (!colour) continue;
      const placed = new Path2D();
      placed.addPath(path, place);
      this.context.strokeStyle = `rgb(${colour.join(" ")})`;
      this.context.stroke(placed);
    }
  }

  // Where the picture lies on the canvas, in device pixels.
  frame() {
    const { width, height } = this.canvas;
    const wide = this.columns * state.spacing[this.across], high = this.rows * state.spacing[this.down];
    const scale = Math.min(width / wide, height / high) * this.zoom;
    const size = [wide * scale, high * scale];
    const center = [(state.at[this.across] + 0.5) / this.columns, (this.rowOf(state.at) + 0.5) / this.rows];
    const place = [width, height].map((room, part) => {
      if (size[part] <= room) return (room - size[part]) / 2;
      return Math.min(0, Math.max(room - size[part], room / 2 - center[part] * size[part]));
    });
    return { x: place[0], y: place[1], width: size[0], height: size[1], scale };
  }

  // However much changes between two frames of the screen, the plane is drawn once.
  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.drawNow(); });
  }

  drawNow() {
    if (!this.values) return;
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.getBoundingClientRect();
    const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.paint();
    const { context } = this, at = this.frame();
    context.fillStyle = getComputedStyle(this.section).backgroundColor;
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = this.zoom < 6;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, at.x, at.y, at.width, at.height);
    if (state.lungs && this.labels) this.drawLungs(at, ratio);
    if (state.cross) this.drawCross(at, ratio);
    this.drawScale(at, ratio);
    const number = `${this.index + 1} / ${state.shape[this.axis]}`;
    this.where.textContent = `${this.kind} ${number}`;
    this.canvas.setAttribute("aria-label", `${this.kind} plane ${number}`);
    if (!document.body.dataset.firstPicture) {
      document.body.dataset.firstPicture = performance.now().toFixed(1);
      setTimeout(toldPresented);
    }
    this.section.dataset.shown = String(this.shown);
    this.section.dataset.lungs = String(state.lungs && !!this.labels);
  }

  drawCross(at, ratio) {
    const { context } = this;
    const x = at.x + ((state.at[this.across] + 0.5) / this.columns) * at.width;
    const y = at.y + ((this.rowOf(state.at) + 0.5) / this.rows) * at.height;
    const gap = 9 * ratio;
    for (const [colour, thick] of [["rgb(0 0 0 / 55%)", 3], ["rgb(130 230 130 / 85%)", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick * ratio;
      context.beginPath();
      context.moveTo(at.x, y); context.lineTo(x - gap, y);
      context.moveTo(x + gap, y); context.lineTo(at.x + at.width, y);
      context.moveTo(x, at.y); context.lineTo(x, y - gap);
      context.moveTo(x, y + gap); context.lineTo(x, at.y + at.height);
      context.stroke();
    }
  }

  drawScale(at, ratio) {
    const { context, canvas } = this;
    const length = [200, 100, 50, 20, 10, 5].find((mm) => mm * at.scale < canvas.width / 4) || 2;
    const right = canvas.width - 12 * ratio, y = canvas.height - 10 * ratio, left = right - length * at.scale;
    context.lineWidth = 2 * ratio;
    context.strokeStyle = context.fillStyle = "#d7dde5";
    context.shadowColor = "#000";
    context.shadowBlur = 3 * ratio;
    context.beginPath();
    context.moveTo(left, y - 4 * ratio); context.lineTo(left, y); context.lineTo(right, y); context.lineTo(right, y - 4 * ratio);
    context.stroke();
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText(length >= 10 ? `${length / 10} cm` : `${length} mm`, (left + right) / 2, y - 6 * ratio);
    context.shadowBlur = 0;
  }

  // From a place on the screen to indices of the volume; null outside the picture.
  locate(event) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width, at = this.frame();
    const column = Math.floor((((event.clientX - box.left) * ratio - at.x) / at.width) * this.columns);
    const row = Math.floor((((event.clientY - box.top) * ratio - at.y) / at.height) * this.rows);
    if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) return null;
    const found = [...state.at];
    found[this.across] = column;
    found[this.down] = this.kind === "axial" ? row : this.rows - 1 - row;
    return found;
  }

  valueAt(at) {
    if (!this.values || this.shown !== at[this.axis]) return null;
    const place = this.rowOf(at) * this.columns + at[this.across];
    return { value: this.values[place], label: this.labels ? this.labels[place] : 0 };
  }

  step(count) {
    this.direction = Math.sign(count) || 1;
    const at = [...state.at];
    at[this.axis] += count;
    go(at);
  }

  listen() {
    const { canvas } = this;
    this.slider.addEventListener("input", () => this.step(Number(this.slider.value) - this.index));
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) { this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); return; }
      // A wheel clicks in hundreds of pixels, a touch pad in single ones; up is towards the head, the front, the right.
      turned += event.deltaMode ? Math.sign(event.deltaY) * 60 : event.deltaY;
      const steps = Math.trunc(turned / 40);
      if (steps) { turned -= steps * 40; this.step(-Math.max(-3, Math.min(3, steps))); }
    }, { passive: false });
    let dragging = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button === 1) return;
      dragging = event.shiftKey || event.button === 2
        ? { x: event.clientX, y: event.clientY, center: state.center, width: state.width } : "cross";
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      if (dragging === "cross") this.take(event);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (dragging === "cross") this.take(event);
      else if (dragging) {
        const width = Math.max(1, Math.round(dragging.width * Math.exp((event.clientX - dragging.x) / 250)));
        setWindow(Math.round(dragging.center + (event.clientY - dragging.y) * 3), width);
      }
      state.pointer = { view: this, at: this.locate(event) };
      tell();
    });
    canvas.addEventListener("pointerup", () => { dragging = null; });
    canvas.addEventListener("pointercancel", () => { dragging = null; });
    canvas.addEventListener("pointerleave", () => { state.pointer = null; tell(); });
    canvas.addEventListener("click", (event) => this.take(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => enlarge(this));
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  take(event) {
    const at = this.locate(event);
    if (at) go(at);
  }

  zoomBy(factor) {
    this.zoom = Math.min(16, Math.max(1, this.zoom * factor));
    this.draw();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = (axis, count) => { const at = [...state.at]; at[axis] += count; go(at); };
    const up = this.kind === "axial" ? -1 : 1, far = event.shiftKey ? 10 : 1;
    const keys = {
      ArrowLeft: () => move(this.across, -far), ArrowRight: () => move(this.across, far),
      ArrowUp: () => move(this.down, up * far), ArrowDown: () => move(this.down, -up * far),
      PageUp: () => this.step(far), PageDown: () => this.step(-far),
      Home: () => this.step(-this.index), End: () => this.step(state.shape[this.axis] - 1 - this.index),
      "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8),
      0: () => { this.zoom = 1; this.draw(); }, m: () => enlarge(this),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  }
}

// ---- what all planes share ---------------------------------------------------------------------------------------

const views = [...document.querySelectorAll(".view")].map((section) => new View(section));

function go(at) {
  const next = at.map((index, axis) => Math.min(state.shape[axis] - 1, Math.max(0, index)));
  if (next.every((index, axis) => index === state.at[axis])) return;
  const before = state.at;
  state.at = next;
  for (const view of views) {
    if (next[view.axis] !== before[view.axis]) view.refresh();
    else view.draw();
  }
  tell();
}

function enlarge(view) {
  state.large = state.large ? null : view;
  $("views").classList.toggle("one", !!state.large);
  for (const one of views) one.section.classList.toggle("large", one === state.large);
  for (const one of views) one.draw();
  view.canvas.focus({ preventScroll: true });
}

function position(at) {
  const mm = state.matrix.map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);
  const side = (value, more, less) => `${value < 0 ? less : more} ${Math.abs(value).toFixed(1)}`;
  return `${side(mm[0], "L", "R")}  ${side(mm[1], "P", "A")}  ${side(mm[2], "S", "I")} mm`;
}

function tell() {
  const free = state.pointer && state.pointer.at;
  const at = free ? state.pointer.at : state.at;
  const candidates = free ? [state.pointer.view] : views;
  const found = candidates.map((view) => view.valueAt(at)).find((one) => one);
  const value = $("value");
  value.replaceChildren();
  if (!found) { value.textContent = position(at); return; }
  const strong = document.createElement("b");
  const number = Number.isInteger(found.value) ? String(found.value) : found.value.toFixed(1);
  strong.textContent = `${number.replace("-", "\u2212")} HU`;
  const label = found.label ? ` \u00b7 ${about.labels[found.label]?.name || found.label}` : "";
  const voxel = document.createElement("span");
  voxel.className = "voxel";
  voxel.textContent = ` \u00b7 voxel ${at.join(" ")}`;
  value.append(strong, `${label} \u00b7 ${position(at)}`, voxel);
}

function setWindow(center, width) {
  if (!Number.isFinite(center) || !Number.isFinite(width) || width < 1) return;
  state.center = center;
  state.width = width;
  for (const [id, number] of [["center", center], ["width", width]]) {
    if (document.activeElement !== $(id)) $(id).value = number;
  }
  document.querySelectorAll("[data-preset]").forEach((button) => {
    const preset = about.presets[Number(button.dataset.preset) - 1];
    button.setAttribute("aria-pressed", String(preset.center === center && preset.width === width));
  });
  for (const view of views) view.draw();
}

function choose(number) {
  const preset = about.presets[number - 1];
  if (preset) setWindow(preset.center, preset.width);
}

async function load(volume, grid, geometry) {
  const found = geometry || await fetch(`${root}/${about.base}/${grid.ct}`, { cache: "no-store" }).then(async (answer) => {
    const made = await answer.json();
    if (!answer.ok) throw new Error(made.error || `the node answers ${answer.status}`);
    return made;
  });
  // The crosshair stays where it is in the patient, not in the voxels.
  const share = state.grid ? state.at.map((index, axis) => (index + 0.5) / state.shape[axis]) : [0.5, 0.5, 0.5];
  Object.assign(state, { grid, shape: found.shape, spacing: found.spacing, matrix: found.matrix, type: found.type });
  state.at = share.map((part, axis) => Math.min(found.shape[axis] - 1, Math.floor(part * found.shape[axis])));
  $("legend").hidden = !grid.lungs;
  $("lungs").disabled = !grid.lungs;
  for (const view of views) view.reset();
  // The axial plane first: the others may need the whole volume, which is unpacked only then.
  await views[0].refresh();
  tell();
  await presented;
  for (const view of views.slice(1)) view.refresh().then(tell);
}

function begin() {
  const grids = about.volumes.flatMap((volume) => volume.grids.map((grid) => ({ volume, grid })));
  const several = about.volumes.length > 1;
  grids.forEach(({ volume, grid }, place) => {
    $("grid").add(new Option(several ? `volume ${volume.number}, ${grid.name}` : grid.name, place));
  });
  $("grid").addEventListener("change", () => {
    const { volume, grid } = grids[Number($("grid").value)];
    load(volume, grid).catch((error) => say(error.message));
  });
  document.querySelectorAll("[data-preset]").forEach((button) => {
    button.addEventListener("click", () => choose(Number(button.dataset.preset)));
  });
  for (const id of ["center", "width"]) {
    $(id).addEventListener("change", () => setWindow(Number($("center").value), Number($("width").value)));
  }
  for (const id of ["lungs", "cross"]) {
    $(id).addEventListener("change", () => {
      state[id] = $(id).checked;
      for (const view of views) { view.draw(); if (id === "lungs" && state.lungs) view.refresh(); }
    });
  }
  for (const item of document.querySelectorAll("[data-label]")) {
    const colour = about.labels[item.dataset.label].colour;
    item.querySelector(".swatch").style.background = `rgb(${colour.join(" ")})`;
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number], select")) return;
    if (event.key >= "1" && event.key <= String(about.presets.length)) choose(Number(event.key));
    else if (event.key === "l" && !$("lungs").disabled) $("lungs").click();
    else if (event.key === "x") $("cross").click();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => { for (const view of views) view.draw(); }).observe($("views"));
  choose(1);
  load(grids[0].volume, grids[0].grid, about.geometry).catch((error) => say(error.message));
}

// ---- originals as pictures, where there is no volume ---------------------------------------------------------------

async function beginStack() {
  const answer = await fetch(`${about.originals}/instances`, { headers: { accept: "application/dicom+json" } });
  if (!answer.ok) return;
  const number = (hit) => hit["00200013"]?.Value?.[0] ?? 0;
  const hits = (await answer.json()).sort((one, other) => number(one) - number(other));
  if (!hits.length) return;
  const picture = $("original"), slider = $("number");
  const show = () => {
    const uid = hits[slider.value]["00080018"].Value[0];
    picture.src = `${about.originals}/instances/${encodeURIComponent(uid)}/rendered?viewport=1024,1024`;
    $("caption").textContent = `original ${Number(slider.value) + 1} of ${hits.length}, as its header says`;
  };
  picture.addEventListener("error", () => { $("caption").textContent += ": it has no picture"; });
  slider.max = hits.length - 1;
  slider.value = Math.floor(hits.length / 2);
  slider.addEventListener("input", show);
  $("stack").hidden = false;
  show();
}

if (about.volumes.length) begin();
else beginStack();
