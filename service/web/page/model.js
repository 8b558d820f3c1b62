/** The model: what was measured of it and how, what it imagines, what it was made from. */

import { Calibration } from "./calibration.js";
import { html, table } from "./dom.js";
import { Latents } from "./latents.js";
import { Notice } from "./notice.js";
import { Problem } from "./problem.js";
import { short } from "./words.js";

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
    this.latents = new Latents(api, this.manifest);
    this.calibration = new Calibration();
    this.element = html(
      "section",
      { id: "model-view", "aria-labelledby": "model-heading" },
      html("h2", { id: "model-heading" }, "About the model"),
      this.notice.element,
      html(
        "div",
        { class: "halves" },
        html("div", { class: "stack" }, this.calibration.element, this.latents.element),
        html(
          "div",
          { class: "stack" },
          html("div", { class: "card" }, html("h3", {}, "How good is it?"), metrics(this.manifest)),
          html("div", { class: "card" }, html("h3", {}, "What was it made from?"), provenance(summary)),
        ),
      ),
    );
    this.#load();
  }

  /** The image that the page is about. */
  use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.latents.use(subject);
    this.calibration.place(null);
  }

  /** Stop all requests. */
  close() {
    this.#abort.abort();
    this.latents.close();
    this.notice.clear();
  }

  async #load() {
    const path = `v1/models/${encodeURIComponent(this.manifest.name)}/calibration`;
    try {
      const found = await this.api.ask(path, { signal: this.#abort.signal });
      this.calibration.show(found);
      this.latents.order(found.latents);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (error instanceof Problem && error.slug === "uncalibrated-model") {
        this.calibration.missing(error);
        this.latents.order(null);
      } else this.notice.show(error, () => this.#load());
    }
  }
}

function metrics(/** @type {any} */ manifest) {
  if (!manifest.metrics.length)
    return html("p", {}, "The manifest has no metrics: nothing was measured when the model was published.");
  const protocols = [...new Set(manifest.metrics.map(({ protocol }) => protocol))];
  const rows = manifest.metrics.map(({ name, value, std_error: error, unit, num_images: count, protocol }) => [
    name.replaceAll("_", " "),
    `${figure(value)}${error === null ? "" : ` ± ${short(error)}`} ${unit}`,
    String(count),
    String(protocols.indexOf(protocol) + 1),
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

function figure(/** @type {number} */ value) {
  return (Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 4 : 2)).replace("-", "−");
}

function provenance(
  /** @type {any} */ { manifest, versions, loaded_versions: loaded, refused, execution_provider: provider },
) {
  const { image, preparation, likelihood, latent_dim: dim, calibration, provenance: made } = manifest;
  const rows = [
    ["Version", `${manifest.version}, of ${versions.join(", ")} in the store; in memory: ${loaded.join(", ")}`],
    ["Created", manifest.created],
    ["Runs on", provider ?? "not loaded"],
    ["Images", `${image.channels} × ${image.height} × ${image.width} (channels, height, width)`],
    ["Preparation", listed(preparation)],
    ["Likelihood", likelihood.kind],
    ["Latent dimensions", String(dim)],
    ["Calibrated on", calibration ? `${calibration.num_images} ${calibration.source}` : "nothing"],
    ["Data", made?.data_set ?? "unknown"],
    ["Seed", String(made?.seed ?? "unknown")],
    ["Configuration", listed(made?.configuration)],
    ["Libraries", listed(made?.library_versions)],
    ...Object.entries(manifest.sha256 ?? {}).map(([file, hash]) => [`SHA-256 of ${file}`, String(hash)]),
    ...refused.map(({ version, reason }) => [`Refused: version ${version ?? "unknown"}`, reason]),
  ];
  return table("Provenance and versions", ["What", "Value"], rows);
}

/** Names and values in one line. */
function listed(/** @type {Object<string, unknown>|null|undefined} */ values) {
  const shown = Object.entries(values ?? {}).filter(([, value]) => value !== null);
  const text = (/** @type {unknown} */ value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  return shown.map(([name, value]) => `${name.replaceAll("_", " ")}: ${text(value)}`).join("; ") || "unknown";
}
