/** Codes by hand: a slider for each latent dimension, and the image that the model decodes from them. */

import { html } from "./dom.js";
import { Interpolation } from "./interpolation.js";
import { Latest } from "./latest.js";
import { Notice } from "./notice.js";
import { canvas, show } from "./pixels.js";
import { requestOf } from "./subject.js";
import { number } from "./words.js";

const FEW = 8;
const MOST = 3;

export class Latents {
  /** @type {number[]} */
  #order;
  #all = false;
  #abort = new AbortController();

  /**
   * @param {import("./api.js").Api} api
   * @param {any} manifest the model's
   * @param {Object<string, string|number>} query which model
   */
  constructor(api, manifest, query) {
    this.api = api;
    this.query = query;
    const { height, width } = manifest.image;
    /** @type {number[]} the code z */
    this.code = Array(manifest.latent_dim).fill(0);
    this.#order = this.code.map((_, index) => index);
    this.latest = new Latest([(code, signal) => this.#decode(code, signal)], (error) =>
      this.notice.show(error, () => this.#changed()),
    );
    this.notice = new Notice();
    /** @type {import("./subject.js").Subject|null} */
    this.subject = null;
    this.picture = canvas("What the model decodes from the sliders' code", height, width);
    this.used = html("p", { class: "hint" });
    this.sliders = html("div", { class: "sliders" });
    this.more = html("button", { type: "button", onclick: () => this.#toggle() });
    this.own = html("button", { type: "button", disabled: true, onclick: () => this.#encode() }, "Your image's code");
    this.between = new Interpolation(
      () => ({ code: this.code, picture: this.picture }),
      (code) => this.#set(code),
    );
    this.element = html(
      "div",
      { class: "card" },
      html("h3", {}, "What does it imagine?"),
      html(
        "p",
        {},
        "Each slider is one dimension of the code z. The picture is the mean image that the model decodes from z.",
      ),
      this.notice.element,
      html(
        "div",
        { class: "decoder" },
        html("div", {}, this.picture),
        html(
          "div",
          {},
          this.used,
          this.sliders,
          html(
            "div",
            { class: "buttons" },
            html("button", { type: "button", onclick: () => this.#set(this.code.map(() => 0)) }, "All zero"),
            html("button", { type: "button", onclick: () => this.#draw() }, "A random code"),
            this.own,
            this.more,
          ),
        ),
      ),
      this.between.element,
    );
  }

  /**
   * Show the sliders, the most used dimensions first.
   * @param {{variance: number[]}|null} units how far the codes of ordinary images vary; null if that is not known
   */
  order(units) {
    if (units) this.#order.sort((one, other) => units.variance[other] - units.variance[one]);
    this.used.textContent = units
      ? "Ordered by how much the codes of the calibration images vary: the first dimensions matter most."
      : "In the model's own order: the calibration does not say which dimensions matter most.";
    this.#show();
    this.#changed();
  }

  /** The image whose code can be loaded. */
  use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.subject = subject && (subject.first ?? subject);
    this.own.disabled = !subject;
  }

  /** Stop all requests. */
  close() {
    this.#abort.abort();
    this.latest.stop();
    this.notice.clear();
  }

  #toggle() {
    this.#all = !this.#all;
    this.#show();
  }

  #show() {
    const shown = this.#all ? this.#order : this.#order.slice(0, FEW);
    this.sliders.replaceChildren(...shown.map((dimension) => this.#slider(dimension)));
    this.more.textContent = this.#all ? `Only the first ${FEW}` : `All ${this.code.length} dimensions`;
    this.more.hidden = this.code.length <= FEW;
  }

  #slider(/** @type {number} */ dimension) {
    const value = this.code[dimension];
    const shown = html("output", {}, number(value, 1));
    const moved = (event) => {
      this.code[dimension] = Number(event.target.value);
      shown.textContent = number(this.code[dimension], 1);
      this.#changed();
    };
    const id = `latent-${dimension}`;
    const input = html("input", { type: "range", id, min: -MOST, max: MOST, step: 0.1, oninput: moved });
    input.value = String(value);
    return html("div", { class: "slider" }, html("label", { for: id }, `z${dimension}`), input, shown);
  }

  #set(/** @type {number[]} */ code) {
    this.code = code;
    this.#show();
    this.#changed();
  }

  #changed() {
    this.notice.clear();
    this.latest.push(this.code.slice());
  }

  async #decode(/** @type {number[]} */ code, /** @type {AbortSignal} */ signal) {
    const body = JSON.stringify({ latents: [code] });
    const query = { ...this.query, as: "array" };
    const { images } = await this.api.ask("v1/decode", { query, type: "application/json", body, signal });
    show(this.picture, images[0]);
  }

  async #draw() {
    try {
      const query = { ...this.query, n: 1, as: "array" };
      const { latents } = await this.api.ask("v1/samples", { query, signal: this.#abort.signal });
      this.#set(latents[0]);
    } catch (error) {
      if (!this.#abort.signal.aborted) this.notice.show(error, () => this.#draw());
    }
  }

  async #encode() {
    try {
      const { mean } = await this.api.ask("v1/encode", requestOf(this.subject, this.query, this.#abort.signal));
      this.#set(mean[0]);
    } catch (error) {
      if (!this.#abort.signal.aborted) this.notice.show(error, () => this.#encode());
    }
  }
}
