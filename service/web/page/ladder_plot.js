/** Estimates of log P(x) against the number of samples, with the ELBO below and the gap between. */

import { svg } from "./dom.js";
import { Plot, fitting } from "./plot.js";
import { nats, number, reliability } from "./words.js";

/** @typedef {import("./ladder.js").Rung} Rung */

const FRAME = { width: 760, height: 380, left: 62, right: 190, top: 36, bottom: 44 };
/** Where the window has no room for texts beside the plot. */
const NARROW_FRAME = { ...FRAME, left: 44, right: 24, top: 68 };
const COUNTS = [10, 100, 1000, 10000];
const ORDER = ["prior", "encoder", "laplace", "annealed"];
const Z = 1.96;

/**
 * The estimate to measure the others by.
 * @param {Rung[]} rungs at least one
 * @returns {Rung} the last reliable one, of the best proposal; if none is reliable, the highest
 */
export function anchorOf(rungs) {
  const reliable = rungs.filter(({ result }) => result.reliable);
  const value = ({ result }) => result.log_likelihood ?? -Infinity;
  return reliable.length
    ? reliable[reliable.length - 1]
    : rungs.reduce((best, rung) => (value(rung) > value(best) ? rung : best));
}

/**
 * The ELBO, and how far the best estimate is above it.
 * @param {Rung[]} rungs at least one
 * @returns {{elbo: number|null, gap: number|null}} the ELBO of most encoder samples: its noise is smallest
 */
export function boundOf(rungs) {
  const encoder = rungs.filter(({ proposal }) => proposal === "encoder");
  const anchor = anchorOf(rungs).result;
  const { elbo } = encoder.length ? encoder[encoder.length - 1].result : anchor;
  return { elbo, gap: elbo === null || anchor.log_likelihood === null ? null : anchor.log_likelihood - elbo };
}

/** @param {Rung[]} rungs @returns {SVGElement} */
export function ladderPlot(rungs) {
  const best = anchorOf(rungs).result.log_likelihood ?? 0;
  const bound = boundOf(rungs);
  const elbo = bound.elbo ?? best;
  const told = `best ${number(best)}, ELBO ${number(elbo)} nats`;
  const label = `Estimates of log P(x) against samples; ${told}. The numbers are in the table below.`;
  const span = Math.max(best - elbo, 3);
  const wide = fitting(FRAME);
  const narrow = wide.width < FRAME.width;
  const frame = narrow ? { ...NARROW_FRAME, width: wide.width } : wide;
  const plot = new Plot(label, frame, [0.85, 4.15], [best - 1.5 * span, best + 0.3 * span], true);
  plot.axes(COUNTS, "samples K, logarithmic", "log P(x), nats");
  const right = frame.width - frame.right;
  plot.add("line", { class: "elbo", x1: frame.left, x2: right, y1: plot.y(elbo), y2: plot.y(elbo) });
  plot.text(frame.left + 4, plot.y(elbo) - 5, `ELBO ${number(elbo)}`, "start");
  bracket(plot, right + 8, plot.y(best), plot.y(elbo), number(bound.gap), narrow);
  for (const proposal of ORDER) {
    const own = rungs.filter((rung) => rung.proposal === proposal);
    const shift = 1 + 0.06 * (ORDER.indexOf(proposal) - 1.5); // side by side where K is the same
    const points = own.map((rung) => [plot.x(rung.samples * shift), heightOf(plot, rung)]);
    plot.add("polyline", { class: `line ${proposal}`, points: points.map((point) => point.join(",")).join(" ") });
    for (const [index, rung] of own.entries()) mark(plot, rung, points[index][0], points[index][1]);
  }
  key(plot, narrow);
  return plot.root;
}

/** Where an estimate is drawn: at the bottom if it is below the plot. */
function heightOf(plot, { result }) {
  const low = plot.frame.height - plot.frame.bottom;
  const value = result.log_likelihood;
  return value === null ? low - 7 : Math.min(low - 7, Math.max(plot.frame.top, plot.y(value)));
}

/** One estimate with its 95 % interval; an arrow down if it is below the plot. */
function mark(plot, { proposal, samples, result }, x, y) {
  const { log_likelihood: value, std_error: error } = result;
  const below = value === null || value < plot.ys[0];
  const told = `${proposal}, K = ${samples}: ${nats(value, error)}, ${reliability(result)}`;
  const kind = `mark ${proposal} ${result.reliable ? "full" : "hollow"}`;
  if (error !== null && !below) {
    const [y1, y2] = [value - Z * error, value + Z * error].map((end) =>
      Math.max(plot.frame.top, Math.min(plot.frame.height - plot.frame.bottom, plot.y(end))),
    );
    plot.add("line", { class: `line ${proposal}`, x1: x, x2: x, y1, y2 });
  }
  plot.add("path", { class: kind, d: below ? arrow(x, y) : shape(proposal, x, y) }, svg("title", {}, told));
}

/** Each proposal has a shape of its own, so that colour is not needed. */
function shape(proposal, x, y) {
  if (proposal === "prior") return `M${x - 5} ${y + 5}h10l-5 -10z`;
  if (proposal === "encoder") return `M${x - 5} ${y - 5}h10v10h-10z`;
  if (proposal === "laplace") return `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z`;
  return `M${x - 6} ${y}l6 -6l6 6l-6 6z`;
}

function arrow(x, y) {
  return `M${x - 5} ${y - 4}h10l-5 9z`;
}

/** The gap between the ELBO and log P(x); its text is above where there is no room beside. */
function bracket(plot, x, top, bottom, gap, narrow) {
  plot.add("path", { class: "bracket", d: `M${x} ${top}h7V${bottom}h-7` });
  const [name, value] = ["KL[q(z|x) ‖ p(z|x)]", `= ${gap} nats`];
  if (narrow) return plot.text(x + 7, top - 18, `${name} ${value}`, "end");
  const middle = (top + bottom) / 2;
  plot.text(x + 14, middle - 4, name, "start");
  plot.text(x + 14, middle + 13, value, "start");
}

function key(plot, narrow) {
  ORDER.forEach((proposal, index) => {
    const [column, row] = narrow ? [index % 2, Math.floor(index / 2)] : [index, 0];
    const left = plot.frame.left + (narrow ? 8 : 130) + 90 * column;
    plot.add("path", { class: `mark ${proposal} full`, d: shape(proposal, left, 14 + 18 * row) });
    plot.text(left + 10, 18 + 18 * row, proposal, "start");
  });
}
