/** Many images: which of them are strange. */

import { Batch } from "./batch.js";
import { csv, save } from "./csv.js";
import { html, nextFrame } from "./dom.js";
import { chosen, dropped, filesOf } from "./files.js";
import { Notice } from "./notice.js";
import { canvas, levelsOf, showLevels } from "./pixels.js";
import { RowsTable } from "./rows_table.js";
import { Threshold } from "./threshold.js";
import { Thumbnails } from "./thumbnails.js";
import { nats, number, short } from "./words.js";

const MOST_MAPPED = 64 * 64 * 3; // numbers of an image: a map of more is shown by the view of one image only
const MOST_NUMBERS = 100_000; // of maps in one answer, so that reading it does not hold up the page
const FILTERS = { all: "All", anomalies: "Anomalies", doubtful: "Not reliable", failed: "Failed" };
/** @type {import("./rows_table.js").Column<import("./batch.js").Row>[]} */
const COLUMNS = [
  { name: "Image", width: "w-picture", sortBy: null, lasts: true },
  { name: "Name", width: "w-name", sortBy: ({ path }) => path, lasts: true },
  { name: "p-value", width: "w-number", sortBy: ({ result }) => result?.p_value ?? null },
  { name: "Score", width: "w-number", sortBy: ({ result }) => result?.score ?? null, descending: true },
  { name: "log P(x), nats", width: "w-nats", sortBy: ({ result }) => result?.log_likelihood ?? null },
  { name: "Reliable", width: "w-word", sortBy: ({ result }) => (result ? Number(result.reliable) : null) },
  { name: "Anomaly", width: "w-word", sortBy: null },
  { name: "Map", width: "w-picture", sortBy: null },
];

export class Inspect extends EventTarget {
  #size = 0;

  /**
   * Sends "look" with a file in `detail` that is to be seen alone.
   * @param {import("./api.js").Api} api
   * @param {any} manifest the model's
   * @param {any} limits the answer of v1/limits
   */
  constructor(api, manifest, limits) {
    super();
    this.api = api;
    this.manifest = manifest;
    const { channels, height, width } = manifest.image;
    const numbers = channels * height * width;
    this.explain = numbers <= MOST_MAPPED;
    this.query = { model: manifest.name, version: manifest.version, resize: true, as: "array", explain: this.explain };
    this.batch = new Batch((files, signal) => this.#ask(files, signal), {
      mostFiles: this.explain ? Math.floor(MOST_NUMBERS / numbers) : Math.floor(limits.max_pixels / numbers),
      mostBytes: limits.max_body_bytes,
    });
    this.batch.addEventListener("change", () => this.#changed());
    this.batch.addEventListener("halt", (event) =>
      this.notice.show(event.detail, () => this.batch.resume()),
    );
    this.notice = new Notice();
    this.thumbnails = new Thumbnails();
    this.threshold = new Threshold();
    this.threshold.addEventListener("change", () => this.#changed());
    this.table = new RowsTable(
      "Images and their scores",
      COLUMNS,
      {
        lasting: (row) => this.#lasting(row),
        changing: (row) => this.#changing(row),
        version: ({ state, result }) => `${state} ${this.#calls(result)}`,
      },
      () => this.#changed(),
    );
    this.table.order = { column: 3, descending: true };
    this.element = this.#layout();
    this.#draw();
  }

  /** Stop all requests. */
  close() {
    this.batch.clear();
    this.thumbnails.clear();
    this.notice.clear();
  }

  /**
   * Score these, too.
   * @param {(FileSystemEntry|File)[]} entries
   */
  async drop(entries) {
    this.progress.textContent = "Reading folders…";
    try {
      this.batch.add(await filesOf(entries));
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.progress.textContent = `The folder cannot be read: ${error.message}`;
    }
  }

  #layout() {
    const input = (id, kind) =>
      html("input", {
        type: "file",
        id,
        class: "unseen",
        multiple: true,
        ...kind,
        onchange: (event) => {
          this.batch.add(chosen(event.target.files));
          event.target.value = "";
        },
      });
    const button = (name, onclick) =>
      html("button", { type: "button", onclick }, name);
    this.pausing = button("Pause", () => (this.batch.paused ? this.#resume() : this.batch.pause()));
    this.retrying = button("Retry failed", () => {
      this.notice.clear();
      this.batch.retry();
    });
    this.saving = button("Download CSV", () => this.#save());
    this.clearing = button("Remove all", () => this.#clear());
    this.bar = html("progress", { "aria-label": "Images scored", max: 1, value: 0 });
    this.progress = html("p", { role: "status" });
    this.search = html("input", { type: "search", id: "search", oninput: () => this.#changed() });
    const options = Object.entries(FILTERS).map(([value, name]) => html("option", { value }, name));
    this.filter = html("select", { id: "filter", onchange: () => this.#changed() }, ...options);
    this.found = html("p", { class: "hint", role: "status" });
    this.results = html(
      "div",
      { class: "inspected" },
      this.threshold.element,
      html(
        "div",
        { class: "buttons" },
        html("label", { for: "search" }, "Name has"),
        this.search,
        html("label", { for: "filter" }, "Show"),
        this.filter,
        this.saving,
      ),
      this.found,
      this.table.element,
    );
    const model = `${this.manifest.name}, version ${this.manifest.version}.`;
    return html(
      "section",
      {
        id: "inspect",
        "aria-labelledby": "inspect-heading",
        ondragover: (event) => event.preventDefault(),
        ondrop: (event) => {
          event.preventDefault();
          this.drop(dropped(event.dataTransfer));
        },
      },
      html("h2", { id: "inspect-heading", tabindex: -1 }, "Inspect"),
      html(
        "div",
        { class: "card" },
        html("p", {}, "Which of your images are strange? Drop a folder or files here. They are scored by ", model),
        html(
          "div",
          { class: "buttons" },
          input("folder", { webkitdirectory: true }),
          html("label", { for: "folder", class: "button" }, "Choose a folder"),
          input("files", { accept: "image/*" }),
          html("label", { for: "files", class: "button" }, "Choose files"),
          this.pausing,
          this.retrying,
          this.clearing,
        ),
        this.bar,
        this.progress,
        this.notice.element,
        this.results,
      ),
    );
  }

  /** Scores of some files, in their order. */
  async #ask(/** @type {Blob[]} */ files, /** @type {AbortSignal} */ signal) {
    const body = new FormData();
    for (const file of files) body.append("images", file, "image");
    const answer = await this.api.ask("v1/anomaly-scores", { query: this.query, body, signal });
    this.#size = answer.calibration_size;
    return answer.results.map(({ explanation, ...result }) => ({
      result,
      map: explanation ? levelsOf(explanation) : null,
    }));
  }

  #resume() {
    this.notice.clear();
    this.batch.resume();
  }

  #clear() {
    this.notice.clear();
    this.thumbnails.clear();
    this.batch.clear();
  }

  #save() {
    const name = `logpx-${this.manifest.name}-${this.manifest.version}.csv`;
    save(name, csv(this.table.sorted(this.batch.rows), this.threshold.cutoff));
  }

  #changed = nextFrame(() => this.#draw());

  #draw() {
    const { rows, counts, paused } = this.batch;
    const left = counts.waiting + counts.asked;
    this.results.hidden = this.bar.hidden = this.clearing.hidden = rows.length === 0;
    this.pausing.hidden = left === 0;
    this.pausing.textContent = paused ? "Resume" : "Pause";
    this.retrying.hidden = counts.failed === 0;
    this.bar.max = Math.max(1, rows.length);
    this.bar.value = rows.length - left;
    const failed = counts.failed ? `, ${counts.failed} failed` : "";
    const now = left ? (paused ? ", paused" : ", scoring…") : ", done";
    this.progress.textContent = rows.length ? `${counts.scored} of ${rows.length} scored${failed}${now}` : "";
    const pValues = rows.flatMap(({ result }) => (result ? [result.p_value] : []));
    this.threshold.show(pValues, this.#size);
    this.cutoff = this.threshold.cutoff;
    const kept = this.table.sorted(rows.filter((row) => this.#passes(row)));
    this.found.textContent = `${kept.length} of ${rows.length} rows`;
    this.table.show(kept);
  }

  #passes({ path, state, result }) {
    const part = this.search.value.toLowerCase();
    if (part && !path.toLowerCase().includes(part)) return false;
    if (this.filter.value === "anomalies") return this.#calls(result);
    if (this.filter.value === "doubtful") return Boolean(result) && !result.reliable;
    return this.filter.value === "all" || state === "failed";
  }

  /** Whether it is an anomaly. */
  #calls(/** @type {any} */ result) {
    return Boolean(result) && result.p_value <= this.cutoff;
  }

  #lasting({ path, file }) {
    const look = () => this.dispatchEvent(new CustomEvent("look", { detail: file }));
    const name = html("button", { type: "button", class: "name", title: path, onclick: look }, path);
    return [html("td", {}, this.thumbnails.of(file)), html("th", { scope: "row" }, name)];
  }

  #changing({ path, state, result, map, error }) {
    if (!result) {
      const told = state === "failed" ? error : state === "asked" ? "being scored" : "waiting";
      return [html("td", { colspan: 6, class: state === "failed" ? "failed" : "hint", title: told }, told)];
    }
    const picture = map && canvas(`Surprising pixels of ${path}`, 1, 1);
    if (picture) showLevels(picture, map, this.manifest.image);
    const anomaly = this.#calls(result);
    return [
      html("td", {}, short(result.p_value)),
      html("td", {}, number(result.score)),
      html("td", {}, nats(result.log_likelihood, result.std_error).replace(" nats", "")),
      html("td", {}, result.reliable ? "yes" : "no"), // of quick estimates few are
      html("td", {}, anomaly ? html("strong", { class: "called" }, "anomaly") : "no"),
      html("td", {}, picture ?? "–"),
    ];
  }
}
