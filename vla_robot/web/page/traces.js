// Small plots of the last seconds, for any numbers.

export const WINDOW_MS = 20_000;

// Read once per drawing and not per line, since each read makes the browser compute the page's style.
let palette = new Map();
export function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const names = ["accent", "line", "cut", "run", "hold", "stopped", "idle"];
  palette = new Map(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
const colour = (name) => palette.get(name);

// Clears a canvas and sets it to the screen's resolution; returns [context, width, height] in CSS pixels.
function prepared(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function isSeen(element) {
  const box = element.getBoundingClientRect();
  return box.bottom > 0 && box.top < innerHeight;
}

// Samples {at: ms, value, ...}; old ones are dropped.
export class History {
  samples = [];

  add(sample) {
    this.samples.push(sample);
    const since = sample.at - WINDOW_MS - 1000;
    while (this.samples[0].at < since) this.samples.shift();
  }

  clear() {
    this.samples = [];
  }
}

// Draws a line over time, with a gap for a missing number unless `bridged`, and a mark where a limit clamped.
export function drawLine(canvas, history, now, { least = 0.02, floor = null, bridged = false } = {}) {
  const [context, width, height] = prepared(canvas);
  const values = history.samples.filter((s) => s.value !== null).map((s) => s.value);
  if (!values.length) return;
  let low = Math.min(...values), high = Math.max(...values);
  const spare = Math.max(least - (high - low), (high - low) * 0.1) / 2;
  low = floor === null ? low - spare : floor;
  high += spare;
  const x = (at) => width - ((now - at) / WINDOW_MS) * width;
  const y = (value) => height - 2 - ((value - low) / (high - low || 1)) * (height - 4);
  if (low < 0 && high > 0) {
    context.fillStyle = colour("line");
    context.fillRect(0, y(0), width, 1);
  }
  context.strokeStyle = colour("accent");
  context.lineWidth = 1.6;
  context.lineJoin = "round";
  context.beginPath();
  let pen = false;
  for (const { at, value } of history.samples) {
    if (value === null) pen = pen && bridged;
    else if (pen) context.lineTo(x(at), y(value));
    else {
      context.moveTo(x(at), y(value));
      pen = true;
    }
  }
  context.stroke();
  context.fillStyle = colour("cut");
  for (const { at, value, cut } of history.samples) if (cut && value !== null) context.fillRect(x(at) - 1, height - 6, 2, 6);
}

// Draws the modes over time as a band.
export function drawModes(canvas, history, now) {
  const [context, width, height] = prepared(canvas);
  context.fillStyle = colour("line");
  context.fillRect(0, 0, width, height);
  history.samples.forEach(({ at, value }, index) => {
    const until = history.samples[index + 1]?.at ?? now;
    const left = Math.max(width - ((now - at) / WINDOW_MS) * width, 0);
    const right = width - ((now - until) / WINDOW_MS) * width;
    context.fillStyle = colour(value);
    if (right > left) context.fillRect(left, 0, right - left + 0.5, height);
  });
}

// A grid of small plots, one for each dimension.
export class Multiples {
  constructor(root, dims) {
    root.replaceChildren();
    this.cells = dims.map(({ name, unit }) => {
      const cell = document.createElement("div");
      const label = document.createElement("b"), value = document.createElement("span");
      const canvas = document.createElement("canvas");
      label.textContent = label.title = name;
      cell.append(label, value, canvas);
      root.append(cell);
      return { name, unit, value, canvas, history: new History() };
    });
  }

  add(at, values, cutNames) {
    this.cells.forEach((cell, k) => {
      const value = values?.[k] ?? null;
      cell.history.add({ at, value, cut: cutNames.has(cell.name) });
      cell.value.textContent = value === null ? "–" : `${value.toFixed(3)}${cell.unit === "1" ? "" : " " + cell.unit}`;
    });
  }

  clear() {
    for (const cell of this.cells) cell.history.clear();
  }

  draw(now) {
    for (const cell of this.cells) if (isSeen(cell.canvas)) drawLine(cell.canvas, cell.history, now);
  }
}
