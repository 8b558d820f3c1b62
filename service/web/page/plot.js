/** Parts that the plots share: a frame with axes, in SVG. Every plot stands beside a table with the same numbers. */

import { svg } from "./dom.js";

const MIN_WIDTH = 240;
const MARGINS = 100; // of the cards around a plot

export class Plot {
  /**
   * @param {string} label what the plot shows, for those who cannot see it
   * @param {{width: number, height: number, left: number, right: number, top: number, bottom: number,
   *     title?: number}} frame in units of the view box; `title` is how far down the title of y is
   * @param {[number, number]} xs the range of x; of its logarithm to base 10 if `log`
   * @param {[number, number]} ys
   * @param {boolean} [log]
   */
  constructor(label, frame, xs, ys, log = false) {
    this.frame = frame;
    this.xs = xs;
    this.ys = ys;
    this.log = log;
    this.root = svg("svg", {
      class: "plot",
      viewBox: `0 0 ${frame.width} ${frame.height}`,
      role: "img",
      "aria-label": label,
    });
  }

  /** @param {number} value @returns {number} */
  x(value) {
    const place = this.log ? Math.log10(value) : value;
    const { left, right, width } = this.frame;
    return left + ((place - this.xs[0]) / (this.xs[1] - this.xs[0])) * (width - left - right);
  }

  /** @param {number} value @returns {number} */
  y(value) {
    const { top, bottom, height } = this.frame;
    return height - bottom - ((value - this.ys[0]) / (this.ys[1] - this.ys[0])) * (height - top - bottom);
  }

  /**
   * @param {number[]} xTicks
   * @param {string} xTitle
   * @param {string} yTitle
   */
  axes(xTicks, xTitle, yTitle) {
    const { left, right, top, bottom, width, height } = this.frame;
    const low = height - bottom;
    for (const value of xTicks) {
      this.add("line", { class: "grid", x1: this.x(value), x2: this.x(value), y1: top, y2: low });
      this.text(this.x(value), low + 16, String(value).replace("-", "−"), "middle");
    }
    for (const value of ticks(this.ys[0], this.ys[1])) {
      this.add("line", { class: "grid", x1: left, x2: width - right, y1: this.y(value), y2: this.y(value) });
      this.text(left - 6, this.y(value) + 4, String(value).replace("-", "−"), "end");
    }
    this.text((left + width - right) / 2, height - 4, xTitle, "middle");
    this.text(left, this.frame.title ?? top - 8, yTitle, "start");
  }

  /**
   * @param {string} name
   * @param {Object<string, unknown>} attributes
   * @param {...(Node|string)} children
   */
  add(name, attributes, ...children) {
    this.root.append(svg(name, attributes, ...children));
  }

  /**
   * @param {number} x
   * @param {number} y
   * @param {string} text
   * @param {"start"|"middle"|"end"} anchor
   */
  text(x, y, text, anchor) {
    this.add("text", { x, y, "text-anchor": anchor }, text);
  }
}

/**
 * Round numbers in a range.
 * @param {number} low
 * @param {number} high
 * @returns {number[]}
 */
export function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high; index++)
    found.push(Number((index * step).toPrecision(12)));
  return found;
}

/**
 * A frame that is as narrow as the window, so that its texts keep their size.
 * @template {{width: number}} T
 * @param {T} frame
 * @returns {T}
 */
export function fitting(frame) {
  return { ...frame, width: Math.max(MIN_WIDTH, Math.min(frame.width, innerWidth - MARGINS)) };
}
