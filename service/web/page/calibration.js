/** The scores of ordinary images, and where the user's image is among them. */

import { html, numbersOf, svg } from "./dom.js";
import { Plot, fitting, ticks } from "./plot.js";
import { number } from "./words.js";

const FRAME = { width: 560, height: 260, left: 52, right: 20, top: 50, bottom: 44, title: 14 };
const BINS = 30;
const HIGHEST = 0.99; // what is above this share of ordinary images is left out of the bars
const SHARES = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1];

export class Calibration {
  /** @type {any} the answer of v1/models/NAME/calibration */
  #found = null;
  /** @type {{method: string, score: number|null}|null} */
  #place = null;

  constructor() {
    this.body = html("div", {}, html("p", {}, "…"));
    this.element = html(
      "div",
      { class: "card" },
      html("h3", {}, "Where is your image among ordinary ones?"),
      this.body,
    );
  }

  /** @param {any} found */
  show(found) {
    this.#found = found;
    this.#draw();
  }

  /** @param {import("./problem.js").Problem} problem */
  missing(problem) {
    this.body.replaceChildren(html("p", {}, "This model has no calibration. ", problem.detail, " ", problem.advice));
  }

  /** @param {{method: string, score: number|null}|null} place the user's image; null if there is none */
  place(place) {
    if (place === this.#place) return;
    this.#place = place;
    if (this.#found) this.#draw();
  }

  #draw() {
    const { quantiles, probabilities, calibration_size: size } = this.#found;
    const wanted = this.#place?.method ?? "combined";
    const method = wanted in quantiles ? wanted : Object.keys(quantiles)[0];
    const scores = quantiles[method];
    const here = this.#place && this.#place.method === method ? this.#place.score : null;
    const rows = SHARES.map((share) => [`${Math.round(100 * share)} %`, number(at(share, probabilities, scores))]);
    const heads = ["Share of ordinary images", "Score at most"];
    const numbers = numbersOf(this.body, `Quantiles of the score by ${method}`, heads, rows);
    this.body.replaceChildren(
      histogram(method, scores, probabilities, here),
      html(
        "p",
        { class: "hint" },
        `Scores of ${size} images held out of training, by ${method}. Further right is stranger.`,
      ),
      ...(here === null ? [] : [html("p", {}, `Your image's score is ${number(here)}.`)]),
      numbers,
    );
  }
}

/**
 * Bars from quantiles: the share of images between two scores, where shares are known only in hundredths.
 * @param {string} method
 * @param {(number|null)[]} scores
 * @param {number[]} probabilities
 * @param {number|null} here
 */
function histogram(method, scores, probabilities, here) {
  const low = at(0, probabilities, scores);
  const high = at(HIGHEST, probabilities, scores);
  const step = (high - low || 1) / BINS;
  const shares = Array.from(
    { length: BINS },
    (_, bin) =>
      below(low + (bin + 1) * step, probabilities, scores) - (bin ? below(low + bin * step, probabilities, scores) : 0),
  );
  const most = Math.max(...shares);
  const place = here === null ? "" : `, with your image at ${number(here)}`;
  const label = `Histogram of scores by ${method}${place}. The numbers are in the table below.`;
  const plot = new Plot(label, fitting(FRAME), [low, low + BINS * step], [0, 100 * most * 1.05]);
  plot.axes(ticks(low, low + BINS * step), `score by ${method}`, "% of ordinary images");
  shares.forEach((share, bin) => {
    const [left, right] = [plot.x(low + bin * step), plot.x(low + (bin + 1) * step)];
    const top = plot.y(100 * share);
    plot.add("rect", {
      class: "bar",
      x: left + 0.5,
      y: top,
      width: Math.max(0, right - left - 1),
      height: plot.y(0) - top,
    });
  });
  if (here !== null) mark(plot, here, low, low + BINS * step);
  return plot.root;
}

/** The user's image; at an end of the plot if it is beyond. */
function mark(plot, here, low, high) {
  const beyond = here > high ? " (beyond the plot) →" : here < low ? "← (beyond the plot)" : "";
  const x = plot.x(Math.max(low, Math.min(high, here)));
  const end = x > plot.frame.width / 2;
  plot.root.append(svg("line", { class: "here", x1: x, x2: x, y1: FRAME.top - 6, y2: plot.y(0) }));
  plot.text(end ? x + 4 : x - 4, FRAME.top - 11, `your image${beyond}`, end ? "end" : "start");
}

/** The score that this share of images does not exceed. */
function at(share, probabilities, scores) {
  const index = Math.max(
    1,
    probabilities.findIndex((value) => value >= share - 1e-9),
  );
  const [one, other] = [scores[index - 1] ?? 0, scores[index] ?? scores[index - 1] ?? 0];
  const width = probabilities[index] - probabilities[index - 1];
  return one + ((share - probabilities[index - 1]) / width) * (other - one);
}

/** The share of images whose score is at most this. */
function below(score, probabilities, scores) {
  const index = scores.findIndex((value) => value !== null && value > score);
  if (index < 0) return 1;
  if (index === 0) return 0;
  const [one, other] = [Number(scores[index - 1]), Number(scores[index])];
  const part = other > one ? (score - one) / (other - one) : 1;
  return probabilities[index - 1] + part * (probabilities[index] - probabilities[index - 1]);
}
