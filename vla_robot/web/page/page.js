// Fetches the newest scene, draws it, and fetches again: a slow page shows fewer scenes, and delays no other page.

import { Drive } from "/drive.js";
import { drawLine, drawModes, History, Multiples, readPalette } from "/traces.js";

const token = location.hash.slice(1);
const part = (id) => document.getElementById(id);
const decoder = new TextDecoder();
const RETRY_MS = 500;
const MOST_CUTS = 6;

let about = null, drive = null, cameras = new Map(), state = null, action = null;
let urgentUntil = 0, seen = 0, tick = 0, episode = null, arrivals = [];
const modes = new History(), latency = new History();
// For tests: what has been shown.
globalThis.shown = { scenes: 0, pictures: 0, mode: "", tick: 0, since: performance.now() };

async function ask(path, options = {}) {
  return fetch(path, { ...options, headers: { "X-VLA-Token": token, ...options.headers }, cache: "no-store" });
}

export async function act(name, body) {
  const answer = await ask(`/act/${name}`, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, keepalive: true,
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

async function stop() {
  const button = part("stop");
  button.disabled = true;
  button.textContent = "STOPPING";
  try {
    await act("stop", {});
    button.textContent = "STOPPED";
  } catch (error) {
    button.textContent = "NOT STOPPED";
    warn(`The stop did not get through: ${error.message} Use the button at the arm.`, 30_000);
  }
  setTimeout(() => { button.disabled = false; button.textContent = "E-STOP"; }, 1500);
}

// The bar at the top: urgent messages stay for `staysMs`, others change with every scene.
function warn(text, staysMs = 4000) {
  if (!staysMs && performance.now() < urgentUntil) return;
  urgentUntil = performance.now() + staysMs;
  part("banner").textContent = text;
  part("banner").hidden = !text;
}

function build() {
  const [title, address] = about.title.split(" at ");
  part("title").textContent = title;
  part("address").textContent = address ?? "";
  document.title = `${about.kind === "drive" ? "drive" : "view"} ${title}`;
  const mayStop = about.may.includes("stop");
  part("stop").hidden = !mayStop;
  part("watching").hidden = mayStop || about.may.includes("drive");
  part("cameras").replaceChildren();
  tick = 0;
  cameras = new Map(about.cameras.map((name) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    figure.append(canvas, caption);
    part("cameras").append(figure);
    return [name, { canvas, context: canvas.getContext("2d"), caption, recorded: null }];
  }));
  part("overlay").hidden = !Object.keys(about.overlay ?? {}).length;
  for (const [name, file] of Object.entries(about.overlay ?? {})) layOver(cameras.get(name), file);
  state = new Multiples(part("state"), about.state);
  action = new Multiples(part("action"), about.action);
  part("aside").hidden = about.kind === "drive";
  document.querySelector("main").classList.toggle("driving", about.kind === "drive");
  part("drive").hidden = !about.may.includes("drive");
  if (about.may.includes("drive") && drive === null) drive = new Drive(act, stop, warn);
}

async function layOver(camera, base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  camera.recorded = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
}

// A scene: length of the facts, the facts, the JPEG files one after another.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const facts = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const files = facts.pictures.map(({ name, bytes }) => {
    const file = new Blob([new Uint8Array(buffer, at, bytes)], { type: "image/jpeg" });
    at += bytes;
    return [name, file];
  });
  return [facts, files];
}

async function paint([name, file]) {
  const camera = cameras.get(name);
  if (!camera) return;
  const picture = await createImageBitmap(file);
  if (camera.canvas.width !== picture.width || camera.canvas.height !== picture.height) {
    camera.canvas.width = picture.width;
    camera.canvas.height = picture.height;
  }
  camera.context.drawImage(picture, 0, 0);
  picture.close();
  if (camera.recorded) {
    camera.context.globalAlpha = part("overlay-share").value / 100;
    camera.context.drawImage(camera.recorded, 0, 0, camera.canvas.width, camera.canvas.height);
    camera.context.globalAlpha = 1;
  }
  shown.pictures += 1;
}

function list(id, rows) {
  part(id).replaceChildren(...rows.flatMap(([name, value, kind]) => {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    if (kind) { term.className = kind; told.className = kind; }
    return [term, told];
  }));
}

const quantile = (sorted, q) => sorted[Math.min(Math.floor(q * sorted.length), sorted.length - 1)];
const milliseconds = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(value < 10 ? 1 : 0)} ms`);

function showStanding(facts) {
  const idle = !facts.running && facts.mode !== "stopped";
  const mode = idle ? "idle" : facts.mode;
  part("mode").textContent = `${facts.dry_run ? "DRY " : ""}${mode.toUpperCase()}`;
  part("mode").className = `pill ${mode}`;
  part("reason").textContent = facts.reason;
  shown.mode = facts.mode;
  const { silent_s: silent, trouble } = facts.link ?? { silent_s: 0, trouble: "" };
  document.body.classList.toggle("stale", silent > 0);
  if (silent > 0) warn("The bridge does not answer: this view is old, and the state of the arm is unknown.", 0);
  else if (facts.log_failure) warn(`The arm continues without its log: ${facts.log_failure}`, 0);
  else warn(trouble, 0);
}

function showLatency(facts, now) {
  latency.add({ at: now, value: facts.capture_to_command_ms ?? null });
  const sorted = latency.samples.map((s) => s.value).filter((v) => v !== null).sort((a, b) => a - b);
  part("latency").textContent = sorted.length ? quantile(sorted, 0.5).toFixed(0) : "–";
  list("latency-facts", [
    ["99th percentile over 20 s", milliseconds(quantile(sorted, 0.99))],
    ["age of these pictures", milliseconds(facts.picture_age_ms)],
    ["pictures shown", `${rate(now).toFixed(1)} Hz`],
  ]);
}

function showCuts(facts) {
  const rows = (facts.cuts ?? []).slice(0, MOST_CUTS).map(({ dim, cause, times, wanted, allowed }) => {
    const item = document.createElement("li"), name = document.createElement("span"), told = document.createElement("span");
    name.textContent = `${dim}, ${cause}  ×${times}`;
    told.textContent = `${wanted?.toFixed(3) ?? "–"} → ${allowed?.toFixed(3) ?? "–"}`;
    item.append(name, told);
    return item;
  });
  if (!rows.length) {
    const item = document.createElement("li");
    item.className = "none";
    item.textContent = "nothing";
    rows.push(item);
  }
  part("clamps").replaceChildren(...rows);
}

function rate(now) {
  while (arrivals.length && arrivals[0] < now - 3000) arrivals.shift();
  return arrivals.length > 1 ? ((arrivals.length - 1) * 1000) / (arrivals.at(-1) - arrivals[0]) : 0;
}

function showTick(facts, now) {
  if (facts.tick === undefined || facts.tick === tick) return;
  tick = shown.tick = facts.tick;
  if (facts.episode !== episode) breakLines(now);
  episode = facts.episode;
  arrivals.push(now);
  const cutNames = new Set((facts.clamps ?? []).map((c) => c.dim));
  state.add(now, facts.state, new Set());
  action.add(now, facts.executed, cutNames);
  showLatency(facts, now);
  list("now", [
    ["episode, step", `${facts.episode}, ${facts.step}`],
    ["control clock", `${about.rate_hz} Hz`],
    ["task's success test", facts.success ? "holds" : "not yet"],
    ...(facts.entropy == null ? [] : [["policy's entropy", `${facts.entropy.toFixed(2)} nats`]]),
    ...(facts.chunk_gap == null ? [] : [["gap to the former plan", `${facts.chunk_gap.toFixed(3)} of the range`]]),
  ]);
}

// Ends the lines, so that none connects two episodes.
function breakLines(now) {
  state.add(now, null, new Set());
  action.add(now, null, new Set());
}

function show(facts, now) {
  part("instruction").textContent = facts.instruction ? `“${facts.instruction}”` : "";
  showStanding(facts);
  modes.add({ at: now, value: facts.mode === "hold" && !facts.running ? "idle" : facts.mode });
  list("counts", Object.entries(facts.counts ?? {}).map(([name, n]) => [name.replaceAll("_", " "), n, n ? "bad" : "none"]));
  showCuts(facts);
  list("counters", Object.entries(facts.counters ?? {}));
  showTick(facts, now);
  if (drive) drive.show(facts);
  shown.scenes += 1;
}

function draw() {
  const now = performance.now();
  if (about && !document.hidden) {
    readPalette();
    state.draw(now);
    action.draw(now);
    drawModes(part("modes"), modes, now);
    drawLine(part("latency-plot"), latency, now, { floor: 0, least: 10, bridged: true });
  }
  // Traces are drawn 10 times a second; pictures when they arrive.
  setTimeout(() => requestAnimationFrame(draw), 100);
}

async function getAbout() {
  const answer = await ask("/about");
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  const changed = JSON.stringify(told) !== JSON.stringify(about);
  about = told;
  if (changed) build();
}

async function watch() {
  for (;;) {
    try {
      if (about === null) await getAbout();
      const answer = await ask(`/next?seen=${seen}`);
      if (answer.status === 204) continue;
      if (!answer.ok) throw new Error((await answer.json()).error);
      const [facts, files] = unpack(await answer.arrayBuffer());
      seen = facts.number;
      const isNew = facts.tick !== tick; // a scene may have only news of the bridge
      show(facts, performance.now());
      if (isNew) await Promise.all(files.map(paint));
    } catch (error) {
      about = null; // the bridge may serve another robot when it answers again
      document.body.classList.add("stale");
      warn(error instanceof TypeError ? "The program that serves this page has ended or cannot be reached." : error.message, 0);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

part("stop").addEventListener("click", stop);
requestAnimationFrame(draw);
watch();
