/** From one code to another, in a straight line. */

import { html } from "./dom.js";

export class Interpolation {
  /** @type {(number[]|null)[]} */
  #ends = [null, null];

  /**
   * @param {() => {code: number[], picture: HTMLCanvasElement}} current what the sliders show
   * @param {(code: number[]) => void} use
   */
  constructor(current, use) {
    this.current = current;
    this.use = use;
    const range = { type: "range", id: "between", min: 0, max: 1, step: 0.01, value: 0, disabled: true };
    this.slider = html("input", { ...range, oninput: () => this.#move() });
    const ends = ["start", "end"].map((name, index) => {
      const { height, width } = current().picture;
      const label = `The ${name} of the interpolation`;
      const picture = html("canvas", { class: "pixels end", role: "img", "aria-label": label, height, width });
      const keep = html("button", { type: "button", onclick: () => this.#keep(index, picture) }, `Keep as ${name}`);
      return html("div", {}, picture, keep);
    });
    this.element = html(
      "div",
      {},
      html("h4", {}, "Between two images"),
      html("p", { class: "hint" }, "Load or set a code above and keep it as start; then another one as end."),
      html("div", { class: "ends" }, ...ends),
      html("label", { for: "between" }, "From start to end"),
      this.slider,
    );
  }

  #keep(/** @type {number} */ index, /** @type {HTMLCanvasElement} */ target) {
    const { code, picture } = this.current();
    this.#ends[index] = code.slice();
    target.getContext("2d")?.drawImage(picture, 0, 0);
    this.slider.disabled = this.#ends.includes(null);
    this.slider.value = String(index);
  }

  #move() {
    const [start, end] = this.#ends;
    const share = Number(this.slider.value);
    if (start && end) this.use(start.map((value, index) => (1 - share) * value + share * end[index]));
  }
}
