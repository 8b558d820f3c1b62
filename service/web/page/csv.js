/** The table as a file, in full precision. */

const COLUMNS = ["score", "p_value", "log_likelihood", "std_error", "posterior_gap", "num_samples", "reliable"];

/**
 * Comma-separated values (RFC 4180), one line a file.
 * @param {import("./batch.js").Row[]} rows
 * @param {number} cutoff the largest p-value that is called an anomaly
 * @returns {string}
 */
export function csv(rows, cutoff) {
  const lines = rows.map(({ path, result, error }) => [
    path,
    ...COLUMNS.map((name) => result?.[name]),
    result ? result.p_value <= cutoff : null,
    error,
  ]);
  const heads = ["path", ...COLUMNS, "is_anomaly", "error"];
  return [heads, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

function cell(/** @type {unknown} */ value) {
  const text = String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Save a text as a file.
 * @param {string} name
 * @param {string} text
 */
export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
