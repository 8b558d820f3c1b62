/** Many files, scored by few requests at a time: each file becomes a row with its result or its error. */

import { Problem } from "./problem.js";

/**
 * @typedef {Object} Row
 * @property {number} id
 * @property {string} path
 * @property {File} file
 * @property {"waiting"|"asked"|"scored"|"failed"} state
 * @property {any} result of v1/anomaly-scores, without its map; null if there is none
 * @property {Uint8Array|null} map levels [H·W] of surprise, as `pixels.js` shows them
 * @property {string} error what is wrong with the file, if anything is
 * @property {number} most how many files a request with this one may have
 */

const FLIGHTS = 2;
const FIRST_FILES = 8;
const MOST_FILES = 64;
const MOST_BYTES = 8 * 2 ** 20;
const FORM_BYTES = 1024; // more than a form adds to one file
/** Requests grow and shrink so that an answer takes about as long, in milliseconds. */
const QUICK = 1000;
const SLOW = 4000;
/** After so many errors in a row no file is at fault: by halves, one is found sooner. */
const MOST_FAILURES = 8;
const NO_FAULT_OF_FILES = new Set(["unreachable", "uncalibrated-model", "broken-model", "not-ready"]);
const NO_FAULT_STATUSES = new Set([401, 403, 404]);

export class Batch extends EventTarget {
  /** @type {Row[]} */
  rows = [];
  /** @type {Row[]} */
  #waiting = [];
  #flying = 0;
  #size = FIRST_FILES;
  #failures = 0;
  #abort = new AbortController();
  paused = false;

  /**
   * Sends "change" when rows have changed, and "halt" with the error in `detail` when it has paused by itself.
   * @param {(files: Blob[], signal: AbortSignal) => Promise<{result: any, map: Uint8Array|null}[]>} ask
   * @param {{mostFiles: number, mostBytes: number}} limits of a request
   */
  constructor(ask, { mostFiles, mostBytes }) {
    super();
    this.ask = ask;
    this.mostFiles = Math.max(1, Math.min(MOST_FILES, mostFiles));
    this.mostBytes = mostBytes - FORM_BYTES;
  }

  /** @param {import("./files.js").Found[]} found */
  add(found) {
    for (const { path, file } of found) {
      const none = { result: null, map: null, error: "", most: MOST_FILES };
      const row = /** @type {Row} */ ({ id: this.rows.length, path, file, state: "waiting", ...none });
      this.rows.push(row);
      this.#waiting.push(row);
    }
    this.#changed();
    this.#run();
  }

  /** How many rows are in each state. */
  get counts() {
    const counts = { waiting: 0, asked: 0, scored: 0, failed: 0 };
    for (const { state } of this.rows) counts[state] += 1;
    return counts;
  }

  /** Send no more requests; those in flight are answered. */
  pause() {
    this.paused = true;
    this.#changed();
  }

  /** Go on where it paused. */
  resume() {
    this.paused = false;
    this.#failures = 0;
    this.#changed();
    this.#run();
  }

  /** Ask again about all files that failed. */
  retry() {
    const failed = this.rows.filter(({ state }) => state === "failed");
    for (const row of failed) [row.state, row.error, row.most] = ["waiting", "", MOST_FILES];
    this.#waiting.push(...failed);
    this.resume();
  }

  /** Forget all files. */
  clear() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.rows = [];
    this.#waiting = [];
    this.#size = FIRST_FILES;
    this.resume();
  }

  #run() {
    for (; this.#flying < FLIGHTS && !this.paused && this.#waiting.length; this.#flying++)
      this.#fly(this.#abort.signal);
  }

  /** Request after request, while there is something to ask. */
  async #fly(signal) {
    while (!this.paused && this.#waiting.length) {
      const chunk = this.#next();
      try {
        if (chunk.length) await this.#send(chunk, signal);
      } catch (error) {
        if (!(error instanceof Problem) && !signal.aborted) throw error;
        if (!signal.aborted) this.#refused(chunk, error);
      }
      this.#changed();
      signal = this.#abort.signal;
    }
    this.#flying -= 1;
  }

  /** The next rows that fit in one request. To ask for a size costs a call to another process. */
  #next() {
    /** @type {Row[]} */
    const chunk = [];
    let [bytes, most, taken] = [0, Math.min(this.#size, this.mostFiles), 0];
    for (const row of this.#waiting) {
      const { size } = row.file;
      if (size > this.mostBytes) this.#fail(row, Problem.tooLarge(size, this.mostBytes));
      else {
        most = Math.min(most, row.most);
        bytes += size + FORM_BYTES;
        if (chunk.length && (chunk.length >= most || bytes > MOST_BYTES)) break;
        chunk.push(row);
        row.state = "asked";
      }
      taken += 1;
      if (chunk.length >= most) break;
    }
    this.#waiting.splice(0, taken);
    return chunk;
  }

  async #send(chunk, signal) {
    const read = await Promise.all(chunk.map(({ file }) => file.arrayBuffer().catch(() => null)));
    const gone = chunk.filter((_, index) => read[index] === null);
    if (gone.length) {
      for (const row of gone) this.#fail(row, new Error("The file cannot be read any more."));
      this.#again(chunk.filter((row) => !gone.includes(row)));
      return;
    }
    const started = performance.now();
    const answers = await this.ask(read.map((bytes) => new Blob([bytes])), signal);
    const took = performance.now() - started;
    this.#failures = 0;
    if (took < QUICK && chunk.length === this.#size) this.#size = Math.min(2 * this.#size, this.mostFiles);
    if (took > SLOW) this.#size = Math.max(1, Math.floor(chunk.length / 2));
    chunk.forEach((row, index) => Object.assign(row, answers[index], { state: "scored", error: "" }));
  }

  /** A file at fault fails alone. What is no file's fault pauses all. Else the fault is looked for by halves. */
  #refused(chunk, error) {
    const { index, status, slug } = error;
    this.#failures += status >= 500 ? 1 : 0;
    const halts = error.retryAfter !== null || NO_FAULT_OF_FILES.has(slug) || NO_FAULT_STATUSES.has(status);
    if (index !== undefined && index < chunk.length) {
      this.#fail(chunk[index], error);
      this.#again(chunk.filter((_, place) => place !== index));
    } else if (halts || this.#failures > MOST_FAILURES) {
      this.#again(chunk);
      this.paused = true;
      this.dispatchEvent(new CustomEvent("halt", { detail: error }));
    } else if (chunk.length > 1) {
      for (const row of chunk) row.most = Math.ceil(chunk.length / 2);
      this.#again(chunk);
    } else this.#fail(chunk[0], error);
  }

  #fail(row, error) {
    row.state = "failed";
    row.error = error.message;
  }

  /** To the front, so that rows are asked about in their order. */
  #again(rows) {
    for (const row of rows) row.state = "waiting";
    this.#waiting.unshift(...rows);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
