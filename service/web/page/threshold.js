/** Which p-values are anomalies: by alpha or by false discovery rate, over a histogram. */

import { cutoffOfFdr } from "./decisions.js";
import { html, numbersOf } from "./dom.js";
import { Plot, fitting } from "./plot.js";
import { short } from "./words.js";

const FRAME = { width: 560, height: 240, left: 52, right: 20, top: 50, bottom: 44, title: 14 };
const BINS = 24;
const ALPHA = 0.05; // the service's default
const FDR = 0.1;

export class Threshold extends EventTarget {
  /** @type {number[]} */
  #pValues = [];
  #size = 0;

  /** Sends "change" when another threshold was chosen. */
  constructor() {
    super();
    this.byAlpha = this.#choice("by-alpha", true);
    this.byFdr = this.#choice("by-fdr", false);
    this.alpha = this.#share("alpha", ALPHA, this.byAlpha);
    this.fdr = this.#share("fdr", FDR, this.byFdr);
    const range = { type: "range", id: "threshold", class: "threshold", min: -3, max: 0, step: 0.01 };
    this.slider = html("input", { ...range, oninput: () => this.#slide(Number(this.slider.value)) });
    this.plot = html("div", {});
    this.verdict = html("p", { role: "status" });
    this.numbers = html("div", {});
    this.element = html(
      "fieldset",
      { class: "threshold-box" },
      html("legend", {}, "Which are anomalies?"),
      html(
        "div",
        { class: "halves" },
        html(
          "div",
          {},
          html("p", {}, this.byAlpha, html("label", { for: "by-alpha" }, "p-value at most "), this.alpha),
          html("p", {}, this.byFdr, html("label", { for: "by-fdr" }, "false discovery rate at most "), this.fdr),
          this.verdict,
          this.numbers,
        ),
        html(
          "div",
          { class: "threshold-plot" },
          this.plot,
          html("label", { for: "threshold" }, "Threshold: drag it here or in the plot"),
          this.slider,
        ),
      ),
    );
  }

  /** @returns {number} the largest p-value that is called an anomaly */
  get cutoff() {
    if (this.byAlpha.checked) return this.#value(this.alpha, ALPHA);
    return cutoffOfFdr(this.#pValues, this.#value(this.fdr, FDR));
  }

  /**
   * @param {number[]} pValues of the whole table
   * @param {number} calibrationSize 0 if it is not known yet
   */
  show(pValues, calibrationSize) {
    this.#pValues = pValues;
    this.#size = calibrationSize || this.#size;
    this.#draw();
  }

  #choice(id, checked) {
    return html("input", { type: "radio", name: "decide", id, checked, onchange: () => this.#decide() });
  }

  #share(id, value, choice) {
    const name = id === "fdr" ? "False discovery rate" : "Alpha";
    const changed = () => {
      choice.checked = true;
      this.#decide();
    };
    const most = { min: 0.0001, max: 0.9999, step: "any", value };
    return html("input", { type: "number", id, class: "share", ...most, "aria-label": name, oninput: changed });
  }

  #value(input, otherwise) {
    const value = Number(input.value);
    return value > 0 && value < 1 ? value : otherwise;
  }

  #decide() {
    this.#draw();
    this.dispatchEvent(new Event("change"));
  }

  /** To this logarithm of alpha. */
  #slide(logarithm) {
    this.alpha.value = String(Math.min(0.9999, Number((10 ** logarithm).toPrecision(3))));
    this.byAlpha.checked = true;
    this.#decide();
  }

  #draw() {
    const cutoff = this.cutoff;
    const called = this.#pValues.filter((value) => value <= cutoff).length;
    const count = this.#pValues.length;
    const by = this.byAlpha.checked
      ? `About ${short(cutoff * count)} would be called so if all were ordinary.`
      : `At most a share of ${this.#value(this.fdr, FDR)} of them is expected to be ordinary. ` +
        `The procedure of Benjamini and Hochberg over all ${count} p-values` +
        (cutoff ? `: p at most ${short(cutoff)}.` : " calls none.");
    this.verdict.textContent = count ? `${called} of ${count} images are anomalies. ${by}` : "No image is scored yet.";
    const low = Math.log10(1 / ((this.#size || 999) + 1));
    this.slider.min = String(Math.floor(100 * low) / 100);
    this.slider.value = String(Math.log10(cutoff || 10 ** low));
    this.slider.setAttribute("aria-valuetext", `p-value ${short(cutoff)}: ${called} of ${count} images are anomalies`);
    const bins = binsOf(this.#pValues, this.#size, low, cutoff);
    this.plot.replaceChildren(this.#histogram(bins, low, cutoff));
    const rows = bins.map(({ from, to, count: found, expected }) => [
      `${short(10 ** from)} to ${short(10 ** to)}`,
      String(found),
      short(expected),
    ]);
    const heads = ["p-value", "Images", "Expected if all were ordinary"];
    this.numbers.replaceChildren(numbersOf(this.numbers, "Images by p-value", heads, rows));
  }

  #histogram(bins, low, cutoff) {
    const most = Math.max(1, ...bins.map(({ count, expected }) => Math.max(count, expected)));
    const label = `Histogram of p-values, with the threshold at ${short(cutoff)}. The numbers are in the table below.`;
    const plot = new Plot(label, fitting(FRAME), [low, 0], [0, 1.05 * most], true);
    plot.axes(
      [0.0001, 0.001, 0.01, 0.1, 1].filter((value) => Math.log10(value) >= low),
      "p-value (further left: stranger)",
      "images (line: all ordinary)",
    );
    const across = (logarithm) => plot.x(10 ** logarithm);
    for (const { from, to, count, called } of bins) {
      const x = across(from) + 0.5;
      const shape = { x, width: across(to) - x - 0.5 };
      const [none, some, all] = [0, called, count].map((height) => plot.y(height));
      plot.add("rect", { class: "bar", y: all, height: some - all, ...shape });
      plot.add("rect", { class: "bar called", y: some, height: none - some, ...shape });
    }
    const line = bins.flatMap(({ from, to, expected }) => [from, to].map((end) => [across(end), plot.y(expected)]));
    plot.add("polyline", { class: "expected", points: line.join(" ") });
    const x = plot.x(Math.max(10 ** low, cutoff));
    plot.add("line", { class: "here", x1: x, x2: x, y1: FRAME.top - 6, y2: plot.y(0) });
    plot.text(x, FRAME.top - 11, "threshold", x > plot.frame.width / 2 ? "end" : "start");
    this.#drag(plot, low);
    return plot.root;
  }

  /** The whole plot takes the pointer: the line is thin. */
  #drag(plot, low) {
    const { left, right, width } = plot.frame;
    this.slider.style.marginLeft = `${(100 * left) / width}%`; // below the axis of the plot
    this.slider.style.width = `${(100 * (width - left - right)) / width}%`;
    const move = (event) => {
      const box = this.plot.querySelector("svg").getBoundingClientRect();
      const share = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
      this.#slide(low * (1 - Math.max(0, Math.min(1, share))));
    };
    const begin = (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      move(event);
      const end = new AbortController(); // each move draws another plot, so the window is listened to
      addEventListener("pointermove", move, end); // its signal
      for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => end.abort(), end);
    };
    plot.root.addEventListener("pointerdown", begin);
    plot.root.classList.add("draggable");
  }
}

/**
 * How many p-values are in each bin, and how many would be if all images were ordinary.
 * @param {number[]} pValues
 * @param {number} size n: every p-value is a multiple of 1/(n + 1)
 * @param {number} low logarithm of the smallest one
 * @param {number} cutoff
 * @returns {{from: number, to: number, count: number, called: number, expected: number}[]} bounds as logarithms
 */
function binsOf(pValues, size, low, cutoff) {
  const step = -low / BINS;
  const binOf = (value) =>
    Math.max(0, Math.min(BINS - 1, Math.ceil((Math.log10(value) - low) / step - 1e-9) - 1));
  const bins = Array.from({ length: BINS }, (_, index) => {
    const from = low + index * step;
    return { from, to: from + step, count: 0, called: 0, expected: 0 };
  });
  for (const value of pValues) {
    const bin = bins[binOf(value)];
    bin.count += 1;
    if (value <= cutoff) bin.called += 1;
  }
  for (let rank = 1; rank <= size + 1; rank++) bins[binOf(rank / (size + 1))].expected += pValues.length / (size + 1);
  return bins;
}
