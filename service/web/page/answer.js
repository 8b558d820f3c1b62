/** What the model says about one image: numbers, and pictures of it. */

import { details, html, table } from "./dom.js";
import { blank, canvas, legend, show, showMap, summed } from "./pixels.js";
import { nats, number, pValue, reliability, short } from "./words.js";

const MOST_CARDS = 4;
const MOST_PIXELS = 5;

export class Answer {
  /** @param {any} manifest */
  constructor(manifest) {
    const { height, width } = manifest.image;
    this.cards = html("div", { class: "cards" });
    this.judgement = html("div", { class: "judgement" });
    this.timing = html("p", { class: "hint" });
    this.spoken = html("p", { class: "unseen", role: "status" });
    this.prepared = canvas("The image as the model sees it", height, width);
    this.reconstructed = canvas("Reconstruction: what the model makes of the image's code", height, width);
    this.surprise = canvas("Map of surprising pixels", height, width);
    this.most = html("div", {});
    this.subject = html("p", { class: "hint" });
    this.numbers = html(
      "div",
      { class: "card", id: "numbers" },
      html("h3", {}, "How likely is it?"),
      this.cards,
      this.timing,
      html("h3", {}, "Is it an anomaly?"),
      this.judgement,
      this.spoken,
    );
    this.pictures = html(
      "div",
      { class: "card" },
      html("h3", {}, "What the model sees"),
      this.subject,
      html(
        "div",
        { class: "pictures" },
        ...(manifest.features
          ? []
          : [figure(this.prepared, "As the model sees it"), figure(this.reconstructed, "Reconstruction")]),
        figure(this.surprise, "Surprising pixels"),
      ),
      legend(),
      this.most,
    );
    this.clear();
  }

  /** There is no image. */
  clear() {
    delete this.cards.dataset.proposal;
    this.cards.classList.remove("old");
    this.cards.replaceChildren(
      html("p", { class: "big" }, "–"),
      html("p", { class: "hint" }, "log P(x) in nats, higher is more likely"),
    );
    this.judgement.replaceChildren(html("p", {}, "–"));
    this.most.replaceChildren();
    for (const element of [this.timing, this.spoken, this.subject]) element.textContent = "";
    for (const picture of [this.prepared, this.reconstructed, this.surprise]) blank(picture);
  }

  /** Another image is on its way: what is shown is about the one before. */
  expect() {
    delete this.cards.dataset.proposal;
    this.judgement.classList.add("old");
    this.pictures.classList.add("old");
  }

  /** No answer came: the numbers are of an image before. */
  outdated() {
    this.cards.classList.add("old");
  }

  /**
   * @param {string[]} names of the images; a file can hold more than it has names
   * @param {any[]} results
   * @param {string} proposal laplace while the image may still change; then auto
   * @param {number} milliseconds
   */
  estimates(names, results, proposal, milliseconds) {
    const cards = results
      .slice(0, MOST_CARDS)
      .map((result, index) => card(names[index] ?? `Image ${index + 1}`, result));
    const quick = proposal === "laplace";
    if (quick && names.length > results.length) cards.push(...names.slice(results.length).map(later));
    const more = results.length - cards.length;
    this.cards.replaceChildren(...cards, ...(more > 0 ? [html("p", {}, `and ${more} more images in this file`)] : []));
    this.cards.classList.remove("old");
    this.cards.dataset.proposal = proposal;
    const which = `${quick ? "First" : "Final"} estimate (proposal ${proposal})`;
    this.timing.textContent = `${which}, answered in ${Math.round(milliseconds)} ms`;
    const [first] = results;
    if (!quick)
      this.spoken.textContent = `log P of x is ${nats(first.log_likelihood, first.std_error)}, ${reliability(first)}`;
  }

  /**
   * @param {number[][][]} prepared
   * @param {number[][][]} reconstruction
   * @param {string} name
   */
  reconstruction(prepared, reconstruction, name) {
    this.pictures.classList.remove("old");
    this.subject.textContent = name;
    show(this.prepared, prepared);
    show(this.reconstructed, reconstruction);
    blank(this.surprise);
    this.most.replaceChildren();
  }

  /** @param {any} answer of v1/anomaly-scores */
  judgements({ results, alpha, method, calibration_size: size }) {
    const [{ p_value: p, is_anomaly: anomaly, score, explanation }] = results;
    this.judgement.classList.remove("old");
    this.judgement.replaceChildren(
      html("p", { class: "big" }, `p = ${short(p)}`),
      html(
        "p",
        {},
        html("strong", {}, anomaly ? "An anomaly" : "Not an anomaly"),
        ` at alpha ${alpha}: ${pValue(p, size)}.`,
      ),
      html("p", { class: "hint" }, `Score by ${method}: ${score === null ? "not finite" : number(score)}`),
    );
    this.pictures.classList.remove("old");
    if (explanation) this.#explain(summed(explanation));
  }

  /** @param {import("./problem.js").Problem} problem */
  uncalibrated(problem) {
    this.judgement.classList.remove("old");
    this.judgement.replaceChildren(
      html("p", {}, "There is no p-value for this model. ", problem.detail, " ", problem.advice),
    );
  }

  #explain(/** @type {number[][]} */ values) {
    showMap(this.surprise, values);
    const found = values.flatMap((line, row) => line.map((value, column) => ({ row, column, value })));
    const most = found.sort((one, other) => other.value - one.value).slice(0, MOST_PIXELS);
    const rows = most.map(({ row, column, value }) => [String(row + 1), String(column + 1), number(value)]);
    this.most.replaceChildren(
      details(
        "The most surprising pixels as a table",
        table("Most surprising pixels", ["Row", "Column", "Nats above the expected"], rows),
      ),
    );
  }
}

function figure(/** @type {Node} */ picture, /** @type {string} */ caption) {
  return html("figure", {}, picture, html("figcaption", {}, caption));
}

/** An image whose estimate comes when the hand rests. */
function later(/** @type {string} */ name) {
  return html("div", { class: "result" }, html("h4", {}, name), html("p", { class: "big" }, "…"));
}

/** One image's estimate. */
function card(/** @type {string} */ name, /** @type {any} */ result) {
  const facts = [
    ["Bits per dimension", number(result.bits_per_dim, 4)],
    ["ELBO", nats(result.elbo, null)],
    ["Gap: KL[q(z|x) ‖ p(z|x)]", nats(result.posterior_gap, null)],
    ["Samples", `${result.num_samples}, ${result.proposal}`],
  ];
  return html(
    "div",
    { class: "result" },
    html("h4", {}, name),
    html(
      "p",
      { class: "big" },
      html("span", { class: "value" }, number(result.log_likelihood)),
      result.std_error === null ? "" : html("span", { class: "error" }, ` ± ${number(result.std_error)}`),
      html("span", { class: "unit" }, " nats"),
    ),
    html("p", { class: result.reliable ? "good" : "doubtful" }, `log P(x) is ${reliability(result)}`),
    html("dl", {}, ...facts.flatMap(([term, fact]) => [html("dt", {}, term), html("dd", {}, fact)])),
  );
}
