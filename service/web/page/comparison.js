/** Two versions of a model, side by side: metrics, the user's image, and what they were made from. */

import { html, table } from "./dom.js";
import { factsOf, measured } from "./facts.js";
import { Notice } from "./notice.js";
import { Problem } from "./problem.js";
import { requestOf } from "./subject.js";
import { nats, reliability, short } from "./words.js";

export class Comparison {
  #abort = new AbortController();

  /**
   * @param {import("./api.js").Api} api
   * @param {any} summary the model, as v1/models has it
   */
  constructor(api, { manifest, versions }) {
    this.api = api;
    this.manifest = manifest;
    /** @type {import("./subject.js").Subject|null} */
    this.subject = null;
    this.notice = new Notice();
    const others = versions.filter((version) => version !== manifest.version).reverse();
    const options = others.map((version) => html("option", { value: version }, version));
    this.other = html("select", { id: "other-version" }, ...options);
    this.found = html("div", { class: "compared", role: "status" });
    this.element = html(
      "div",
      { class: "card", hidden: !others.length },
      html("h3", {}, "Compare with another version"),
      html(
        "div",
        { class: "buttons" },
        html("label", { for: "other-version" }, `Version ${manifest.version} and`),
        this.other,
        html("button", { type: "button", onclick: () => this.#compare() }, "Compare"),
      ),
      this.notice.element,
      this.found,
    );
  }

  /** The image that both judge. */
  use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.subject = subject && (subject.first ?? subject);
    this.found.replaceChildren();
  }

  /** Stop all requests. */
  close() {
    this.#abort.abort();
    this.notice.clear();
  }

  async #compare() {
    this.notice.clear();
    const { name, version } = this.manifest;
    const signal = this.#abort.signal;
    try {
      const query = { version: Number(this.other.value) };
      const { manifest: other } = await this.api.ask(`v1/models/${encodeURIComponent(name)}`, { query, signal });
      const judged = await this.#judged(other);
      const rows = [...metricRows(this.manifest, other), ...judged, ...differing(this.manifest, other)];
      const heads = ["What", `Version ${version}`, `Version ${other.version}`];
      this.found.replaceChildren(table("Metrics, your image, and what differs", heads, rows));
    } catch (error) {
      if (!signal.aborted) this.notice.show(error, () => this.#compare());
    }
  }

  /** What both say about the image. */
  async #judged(other) {
    if (!this.subject) return [["Your image", "There is no image yet.", ""]];
    const estimates = [];
    const pValues = [];
    for (const { name: model, version } of [this.manifest, other]) {
      const request = requestOf(this.subject, { model, version }, this.#abort.signal);
      const [result] = (await this.api.ask("v1/log-likelihood", request)).results;
      estimates.push(`${nats(result.log_likelihood, result.std_error)}, ${reliability(result)}`);
      pValues.push(await this.#pValue(request));
    }
    return [
      ["Your image: log P(x)", ...estimates],
      ["Your image: p-value", ...pValues],
    ];
  }

  async #pValue(request) {
    try {
      return short((await this.api.ask("v1/anomaly-scores", request)).results[0].p_value);
    } catch (error) {
      if (error instanceof Problem && error.slug === "uncalibrated-model") return "no calibration";
      throw error;
    }
  }
}

function metricRows(one, other) {
  const names = new Set([...one.metrics, ...other.metrics].map(({ name }) => name));
  const cell = (manifest, name) => {
    const metric = manifest.metrics.find((found) => found.name === name);
    return metric ? measured(metric) : "not measured";
  };
  return [...names].map((name) => [name.replaceAll("_", " "), cell(one, name), cell(other, name)]);
}

/** The facts that are not the same. */
function differing(one, other) {
  const others = new Map(factsOf(other));
  const rows = factsOf(one).map(([name, value]) => [name, value, others.get(name) ?? "none"]);
  return rows.filter(([, value, its]) => value !== its);
}
