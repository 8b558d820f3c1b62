/** Numbers and reasons in words. */

const REASONS = {
  mode: "no mode of the image's posterior was found, or the best searches disagree: take the number as a lower bound",
  tail: "a few samples have most of the weight, so the error bar means nothing: the number is probably too low",
  groups: "independent groups of samples disagree: take the number as a lower bound, or ask for more samples",
  budget: "there were too few samples: ask for more, or for a largest standard error",
};

/**
 * @param {number|null} value
 * @param {number} [digits]
 * @returns {string} with a minus sign that is as wide as a plus
 */
export function number(value, digits = 2) {
  if (value === null || value === undefined) return "not finite";
  return value.toFixed(digits).replace("-", "−");
}

/**
 * @param {number|null} value
 * @param {number|null} error
 * @returns {string} nats with the standard error
 */
export function nats(value, error) {
  return error === null ? `${number(value)} nats` : `${number(value)} ± ${number(error)} nats`;
}

/**
 * @param {{reliable: boolean, reason: string|null}} result
 * @returns {string}
 */
export function reliability({ reliable, reason }) {
  return reliable ? "reliable" : `not reliable: ${REASONS[reason ?? ""] ?? "see the documentation"}`;
}

/**
 * @param {number} value
 * @param {number} calibrationSize
 * @returns {string} what the p-value says
 */
export function pValue(value, calibrationSize) {
  const strange = Math.max(0, Math.round(value * (calibrationSize + 1)) - 1);
  if (strange === 0) return `none of ${calibrationSize} ordinary images is as strange`;
  return `${strange} of ${calibrationSize} ordinary images are at least as strange`;
}

/** @param {number} value @returns {string} three significant digits */
export function short(value) {
  return Number(value.toPrecision(3)).toString();
}
