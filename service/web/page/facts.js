/** What a manifest says, in words. */

import { short } from "./words.js";

/** What asks for a version: its number only where it is not the one that is served to everybody. */
export function queryOf(/** @type {any} */ { manifest, default_version: usual }) {
  const { name: model, version } = manifest;
  return version === usual ? { model } : { model, version };
}

/** A metric's value and unit. */
export function measured(/** @type {any} */ { value, std_error: error, unit }) {
  return `${figure(value)}${error === null ? "" : ` ± ${short(error)}`} ${unit}`;
}

/** Names and values of what the model was made from. */
export function factsOf(/** @type {any} */ manifest) {
  const { image, preparation, likelihood, latent_dim: dim, calibration, provenance: made } = manifest;
  return [
    ["Created", manifest.created],
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
  ];
}

function figure(/** @type {number} */ value) {
  return (Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 4 : 2)).replace("-", "−");
}

/** In one line; of a long text the beginning. */
function listed(/** @type {Object<string, unknown>|null|undefined} */ values) {
  const shown = Object.entries(values ?? {}).filter(([, value]) => value !== null);
  const brief = (_, value) => (value?.charAt && value.length > 100 ? `${value.slice(0, 100)}…` : value);
  const text = (value) => (typeof value === "object" ? JSON.stringify(value, brief) : brief(0, String(value)));
  return shown.map(([name, value]) => `${name.replaceAll("_", " ")}: ${text(value)}`).join("; ") || "unknown";
}
