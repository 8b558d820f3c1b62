/** Drawing on a canvas: by mouse, touch, pen, or keyboard. */

import { html, nextFrame } from "./dom.js";
import { showBytes } from "./pixels.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP = "Draw with mouse, touch or pen. By keyboard: arrow keys move, space lowers or lifts the pen.";

export class Drawing {
  #pointer = /** @type {number|null} */ (null);
  #penDown = false;
  #cursor = [0, 0];

  /**
   * @param {import("./raster.js").Raster} raster
   * @param {() => void} changed
   */
  constructor(raster, changed) {
    this.raster = raster;
    this.changed = changed;
    this.#cursor = [raster.width / 2, raster.height / 2];
    this.canvas = html("canvas", {
      class: "pixels drawing",
      tabindex: 0,
      role: "application",
      "aria-label": "Drawing area",
      "aria-describedby": "drawing-help",
      height: raster.height,
      width: raster.width,
      onpointerdown: (event) => this.#begin(event),
      onpointermove: (event) => this.#extend(event),
      onpointerup: (event) => this.#end(event),
      onpointercancel: (event) => this.#end(event),
      onkeydown: (event) => this.#press(event),
      onfocus: () => this.paint(),
      onblur: () => this.#lift(),
    });
    this.help = html("p", { id: "drawing-help", class: "hint" }, HELP);
    this.state = html("p", { class: "unseen", role: "status" });
  }

  /** Show the raster, and the keyboard's cursor while it is used, in the next frame. */
  paint = nextFrame(() => {
    showBytes(this.canvas, this.raster.pixels(), this.raster);
    if (!this.canvas.matches(":focus-visible")) return;
    const context = this.canvas.getContext("2d");
    context.fillStyle = this.#penDown ? "#f57d15" : "#4a9eff";
    context.fillRect(Math.floor(this.#cursor[0]), Math.floor(this.#cursor[1]), 1, 1);
  });

  /** @param {PointerEvent} event */
  #place(event) {
    const box = this.canvas.getBoundingClientRect(); // the canvas is scaled by the style sheet and by the screen
    const across = (event.clientX - box.left - this.canvas.clientLeft) / this.canvas.clientWidth;
    const down = (event.clientY - box.top - this.canvas.clientTop) / this.canvas.clientHeight;
    return /** @type {[number, number]} */ ([across * this.raster.width, down * this.raster.height]);
  }

  #begin(event) {
    if (this.#pointer !== null || event.button !== 0) return;
    this.#pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.raster.begin(...this.#place(event));
    this.#drawn();
  }

  #extend(event) {
    if (event.pointerId !== this.#pointer) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) this.raster.extend(...this.#place(move));
    this.#drawn();
  }

  #end(event) {
    if (event.pointerId === this.#pointer) this.#pointer = null;
  }

  #press(event) {
    const step = STEPS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !(step || event.key === " ")) return;
    event.preventDefault();
    if (step) {
      const most = [this.raster.width - 0.5, this.raster.height - 0.5];
      this.#cursor = this.#cursor.map((value, axis) => Math.max(0.5, Math.min(most[axis], value + step[axis])));
      if (this.#penDown) this.raster.extend(this.#cursor[0], this.#cursor[1]);
    } else {
      this.#penDown = !this.#penDown;
      if (this.#penDown) this.raster.begin(this.#cursor[0], this.#cursor[1]);
    }
    const [column, row] = this.#cursor.map((value) => Math.floor(value) + 1);
    this.state.textContent = `Pen ${this.#penDown ? "down" : "up"}, row ${row}, column ${column}`;
    if (this.#penDown) this.#drawn();
    else this.paint();
  }

  #lift() {
    this.#penDown = false;
    this.paint();
  }

  #drawn() {
    this.paint();
    this.changed();
  }
}
