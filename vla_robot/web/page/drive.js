// Teleoperation by keys, two pads for mouse or finger, and a gamepad. Sent 20 times a second while this page is visible.

const SEND_MS = 50;
const SLOW = 0.3;
const DEAD_ZONE = 0.12;

// Axes of the tool: x, y, z, roll, pitch, yaw, each -1 to 1 of the largest allowed motion.
const KEYS = {
  KeyW: [0, 1], KeyS: [0, -1], KeyA: [1, 1], KeyD: [1, -1], KeyE: [2, 1], KeyQ: [2, -1],
  Period: [3, 1], Comma: [3, -1], ArrowUp: [4, 1], ArrowDown: [4, -1], ArrowLeft: [5, 1], ArrowRight: [5, -1],
};

const BUTTONS = [
  ["start", "Start", "primary", "Enter"], ["success", "Success", "", "F1"], ["stop", "Stop", "", "F2"],
  ["discard", "Discard", "", "F3"], ["rerecord", "Again", "", "F4"],
];

// Buttons that replace the others when a policy shares control.
const SHARING = [["takeover", "KeyT"], ["giveback", "KeyG"], ["success", "F1"], ["stop", "F2"]];

// Buttons of a standard gamepad (https://w3c.github.io/gamepad): A, B, X, Y, select, start.
const PAD_GRIP = 0, PAD_BUTTONS = { 1: "discard", 2: "rerecord", 3: "success", 8: "stop", 9: "start" };
const PAD_SHARING = { 1: "giveback", 3: "takeover", 8: "giveback", 9: "takeover" };

const part = (id) => document.getElementById(id);

// A round pad: `at` is the finger's position, -1 to 1 to the right and up; [0, 0] without a finger.
class Pad {
  at = [0, 0];

  constructor(root) {
    this.root = root;
    this.knob = root.querySelector("i");
    root.addEventListener("pointerdown", (event) => { root.setPointerCapture(event.pointerId); this.move(event); });
    root.addEventListener("pointermove", (event) => { if (root.hasPointerCapture(event.pointerId)) this.move(event); });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) root.addEventListener(kind, () => this.put(0, 0));
  }

  move(event) {
    const box = this.root.getBoundingClientRect(), reach = box.width / 2 - 16;
    const x = (event.clientX - box.left - box.width / 2) / reach, y = -(event.clientY - box.top - box.height / 2) / reach;
    const far = Math.max(Math.hypot(x, y), 1);
    this.put(x / far, y / far);
  }

  put(x, y) {
    this.at = [x, y];
    const reach = this.root.clientWidth / 2 - 16;
    this.knob.style.transform = `translate(${x * reach}px, ${-y * reach}px)`;
  }
}

export class Drive {
  keys = new Set();
  pressed = new Set();
  closed = false;
  step = 0;
  task = null;
  busy = false;
  driver = null;
  seat = crypto.getRandomValues(new Uint32Array(2)).join("-");
  padDown = new Set();

  constructor(act, stop, warn) {
    Object.assign(this, { act, stop, warn });
    this.left = new Pad(part("pad-xy"));
    this.right = new Pad(part("pad-z"));
    this.buildButtons();
    for (const name of ["takeover", "giveback"]) {
      const button = part(`button-${name}`);
      button.addEventListener("click", () => { this.pressed.add(name); button.blur(); });
    }
    part("grip").addEventListener("click", () => this.grip());
    part("task").addEventListener("change", () => { this.task = part("task").value.trim(); });
    addEventListener("keydown", (event) => this.down(event));
    addEventListener("keyup", (event) => this.keys.delete(event.code));
    // The page gets no event for a key that is released while another window has the focus.
    addEventListener("blur", () => this.keys.clear());
    setInterval(() => this.send(), SEND_MS);
  }

  buildButtons() {
    part("buttons").replaceChildren(...BUTTONS.map(([name, label, kind, key]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = kind;
      button.id = `button-${name}`;
      button.textContent = label;
      button.title = key;
      button.addEventListener("click", () => { this.pressed.add(name); button.blur(); });
      return button;
    }));
  }

  down(event) {
    if (event.code === "Escape") {
      this.stop();
      return;
    }
    if (event.target instanceof HTMLInputElement && event.target.type === "text") {
      if (event.code === "Enter") event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const button = this.driver === null
      ? BUTTONS.find(([, , , key]) => key === event.code)
      : SHARING.find(([, key]) => key === event.code);
    if (event.code in KEYS || event.code === "Space" || event.code.startsWith("Shift")) {
      event.preventDefault();
      this.keys.add(event.code);
      if (event.code === "Space" && !event.repeat) this.grip();
    } else if (button && !event.repeat) {
      event.preventDefault();
      this.pressed.add(button[0]);
    }
  }

  grip() {
    this.closed = !this.closed;
    part("grip").classList.toggle("closed", this.closed);
    part("grip").textContent = this.closed ? "Open gripper" : "Close gripper";
    part("grip").blur();
  }

  axes() {
    const axes = [0, 0, 0, 0, 0, 0];
    for (const code of this.keys) if (code in KEYS) axes[KEYS[code][0]] += KEYS[code][1];
    const [yRight, x] = this.left.at, [yawRight, z] = this.right.at;
    const touched = [x, -yRight, z, 0, 0, -yawRight];
    const stick = this.stick();
    const slow = this.keys.has("ShiftLeft") || this.keys.has("ShiftRight") ? SLOW : 1;
    const speed = (part("speed").value / 100) * slow;
    return axes.map((axis, k) => Math.max(-1, Math.min(1, axis + touched[k] + stick[k])) * speed);
  }

  // Left stick x and y; right stick up, down and turn; shoulder buttons roll.
  stick() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((p) => p && p.connected);
    part("gamepad").textContent = pad ? pad.id.slice(0, 24) : "no gamepad";
    if (!pad) return [0, 0, 0, 0, 0, 0];
    const axis = (k) => (Math.abs(pad.axes[k] ?? 0) < DEAD_ZONE ? 0 : pad.axes[k]);
    const down = (k) => Boolean(pad.buttons[k]?.pressed);
    this.padButtons(down);
    return [-axis(1), -axis(0), -axis(3), Number(down(5)) - Number(down(4)), 0, -axis(2)];
  }

  padButtons(down) {
    for (const k of [PAD_GRIP, ...Object.keys(PAD_BUTTONS).map(Number)]) {
      const fresh = down(k) && !this.padDown.has(k);
      if (down(k)) this.padDown.add(k);
      else this.padDown.delete(k);
      if (fresh && k === PAD_GRIP) this.grip();
      else if (fresh && this.driver === null) this.pressed.add(PAD_BUTTONS[k]);
      else if (fresh && k in PAD_SHARING) this.pressed.add(PAD_SHARING[k]);
    }
  }

  // One message at a time: over a slow network the newest axes are sent, not a queue of old ones.
  async send() {
    if (this.busy || document.hidden) return;
    const buttons = [...this.pressed], task = this.task;
    this.pressed.clear();
    this.task = null;
    this.busy = true;
    try {
      await this.act("drive", { seat: this.seat, axes: this.axes(), closed: this.closed, buttons, instruction: task });
    } catch (error) {
      for (const name of buttons) this.pressed.add(name);
      this.task ??= task;
      this.warn(error.message);
      await new Promise((resolve) => setTimeout(resolve, 500));
    } finally {
      this.busy = false;
    }
  }

  // A policy shares control: show who has it, and let the grip follow the arm's.
  share(facts) {
    this.driver = facts.driver;
    const you = facts.driver === "person";
    part("driver").hidden = false;
    part("driver").classList.toggle("you", you);
    part("driver-name").textContent = you ? "You drive" : "The policy drives";
    part("driver-hint").textContent = you ? "your actions are recorded as a correction" : "move, or take over, to correct it";
    for (const name of ["start", "discard", "rerecord"]) part(`button-${name}`).hidden = true;
    part("button-stop").textContent = "No success";
    part("task").readOnly = true;
    if (!you && facts.closed !== this.closed) this.grip();
  }

  show(facts) {
    // A new episode begins with an open gripper.
    if (facts.step === 0 && this.step > 0 && this.closed) this.grip();
    this.step = facts.step;
    if (facts.driver) this.share(facts);
    if (document.activeElement !== part("task") && this.task === null) part("task").value = facts.instruction ?? "";
  }
}
