/** The model: what was measured of it and how, what it imagines, what it was made from. */

import { Calibration } from "./calibration.js";
import { Comparison } from "./comparison.js";
import { html, table } from "./dom.js";
import { factsOf, measured, queryOf } from "./facts.js";
import { Latents } from "./latents.js";
import { Notice } from "./notice.js";
import { Problem } from "./problem.js";

export class Model {
  #abort = new AbortController();

  /**
   * @param {import("./api.js").Api} api
   * @param {any} summary the model, as v1/models has it
   */
  constructor(api, summary) {
    this.api = api;
    this.summary = summary;
    this.manifest = summary.manifest;
    this.notice = new Notice();
    this.query = queryOf(summary);
    this.latents = this.manifest.features ? null : new Latents(api, this.manifest, this.query);
    this.comparison = new Comparison(api, summary);
    this.calibration = new Calibration();
    this.element = html(
      "section",
      { id: "model-view", "aria-labelledby": "model-heading" },
      html("h2", { id: "model-heading" }, "About the model"),
      this.notice.element,
      html(
        "div",
        { class: "halves" },
        html("div", { class: "stack" }, this.calibration.element, this.latents?.element ?? ""),
        html(
          "div",
          { class: "stack" },
          html("div", { class: "card" }, html("h3", {}, "How good is it?"), metrics(this.manifest)),
          this.comparison.element,
          html("div", { class: "card" }, html("h3", {}, "What was it made from?"), provenance(summary)),
        ),
      ),
    );
    this.#load();
  }

  /** The image that the page is about. */
  use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.latents?.use(subject);
    this.comparison.use(subject);
    this.calibration.place(null);
  }

  /** Stop all requests. */
  close() {
    this.#abort.abort();
    this.latents?.close();
    this.comparison.close();
    this.notice.clear();
  }

  async #load() {
    const path = `v1/models/${encodeURIComponent(this.manifest.name)}/calibration`;
    try {
      const query = { version: this.manifest.version };
      const found = await this.api.ask(path, { query, signal: this.#abort.signal });
      this.calibration.show(found);
      this.latents?.order(found.latents);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (error instanceof Problem && error.slug === "uncalibrated-model") {
        this.calibration.missing(error);
        this.latents?.order(null);
      } else this.notice.show(error, () => this.#load());
    }
  }
}

function metrics(/** @type {any} */ manifest) {
  if (!manifest.metrics.length)
    return html("p", {}, "The manifest has no metrics: nothing was measured when the model was published.");
  const protocols = [...new Set(manifest.metrics.map(({ protocol }) => protocol))];
  const rows = manifest.metrics.map((metric) => [
    metric.name.replaceAll("_", " "),
    measured(metric),
    String(metric.num_images),
    String(protocols.indexOf(metric.protocol) + 1),
  ]);
  const numbered = protocols.map((protocol) => html("li", {}, protocol));
  return html(
    "div",
    {},
    table("Metrics, each with its protocol", ["Metric", "Value ± standard error", "Images", "Protocol"], rows),
    html("h4", {}, "Protocols"),
    html("ol", { class: "hint" }, ...numbered),
  );
}

function provenance(
  /** @type {any} */ { manifest, versions, loaded_versions: loaded, refused, execution_provider: provider },
) {
  const rows = [
    ["Version", `${manifest.version}, of ${versions.join(", ")} in the store; in memory: ${loaded.join(", ")}`],
    ["Runs on", provider ?? "not loaded"],
    ...factsOf(manifest),
    ...refused.map(({ version, reason }) => [`Refused: version ${version ?? "unknown"}`, reason]),
  ];
  return table("Provenance and versions", ["What", "Value"], rows);
}
