/** One image: draw it, choose it, and see what the model says about it. */

import { html } from "./dom.js";
import { Answer } from "./answer.js";
import { Drawing } from "./drawing.js";
import { dropped } from "./files.js";
import { Latest } from "./latest.js";
import { fitted, isMnist } from "./mnist.js";
import { Notice } from "./notice.js";
import { canvas, show } from "./pixels.js";
import { Problem } from "./problem.js";
import { Raster } from "./raster.js";
import { Requests } from "./requests.js";
import { requestOf, subjectOfFile, subjectOfPixels } from "./subject.js";

const NUM_SAMPLES = 8;
const QUICK_SAMPLES = 100;
const PICTURES = "image/png,image/jpeg,image/webp,.npy";
const EMPTY = "Draw something, drop a file here, paste an image, or start from a sample.";

/** Sends "subject" when the image is another one, "judged" with its score, "many" when more than one was dropped. */
export class Try extends EventTarget {
  /**
   * @param {import("./api.js").Api} api
   * @param {any} manifest
   * @param {any} limits the answer of v1/limits
   * @param {Object<string, string|number>} query which model
   */
  constructor(api, manifest, limits, query) {
    super();
    this.api = api;
    this.manifest = manifest;
    this.limits = limits;
    this.query = query;
    /** @type {import("./subject.js").Subject|null} */
    this.subject = null;
    /** @type {File|null} */
    this.file = null;
    this.abort = new AbortController();
    this.latest = new Latest(
      [
        (input, signal) => this.#quickly(input, signal),
        ...(manifest.features ? [] : [(_, signal) => this.#reconstruct(signal)]),
        (_, signal) => this.#judge(signal),
        (_, signal) => this.#estimate(this.subject, signal, "auto", {}),
      ],
      (error) => {
        this.answer.outdated();
        this.notice.show(error, () => this.#ask());
      },
    );
    this.notice = new Notice();
    this.answer = new Answer(manifest);
    this.requests = new Requests(api, this.query);
    const { channels, height, width } = manifest.image;
    this.drawing =
      channels === 1 || channels === 3 ? new Drawing(new Raster(channels, height, width), () => this.#drew()) : null;
    this.hint = html("p", { class: "hint", role: "status" }, EMPTY);
    this.samples = html("div", { class: "samples" });
    this.element = this.#layout();
    document.addEventListener("paste", (event) => this.#paste(event), { signal: this.abort.signal });
    if (!manifest.features) this.drawSamples();
  }

  /** Stop all requests and listen no more. */
  close() {
    this.abort.abort();
    this.latest.stop();
    this.notice.clear();
  }

  /** Ask for other images from the model's prior. */
  async drawSamples() {
    const query = { ...this.query, n: NUM_SAMPLES, as: "array" };
    try {
      const { images } = await this.api.ask("v1/samples", { query, signal: this.abort.signal });
      this.samples.replaceChildren(...images.map((image, index) => this.#sample(image, index)));
    } catch (error) {
      if (!this.abort.signal.aborted) this.notice.show(error, () => this.drawSamples());
    }
  }

  #layout() {
    const choose = html("input", {
      type: "file",
      id: "file",
      class: "unseen",
      accept: PICTURES,
      onchange: (event) => this.choose(event.target.files[0], event.target),
    });
    const buttons = html(
      "div",
      { class: "buttons" },
      choose,
      html("label", { for: "file", class: "button" }, "Choose a file"),
      this.drawing && html("button", { type: "button", onclick: () => this.#undo() }, "Undo"),
      html("button", { type: "button", onclick: () => this.#clear() }, "Clear"),
    );
    const input = html(
      "div",
      { class: "card" },
      html("h3", {}, "Your image"),
      ...(this.drawing ? [this.drawing.canvas, this.drawing.help, this.drawing.state] : []),
      this.drawing ? null : html("p", {}, "This model's images have other than 1 or 3 channels: choose an npy file."),
      buttons,
      this.hint,
      ...(this.manifest.features
        ? ["This model is of features: it makes no images."]
        : [
            html("h4", {}, "Start from a sample of the model"),
            this.samples,
            html("button", { type: "button", onclick: () => this.drawSamples() }, "Other samples"),
          ]),
    );
    const element = html(
      "section",
      {
        id: "try",
        "aria-labelledby": "try-heading",
        ondragover: (event) => event.preventDefault(),
        ondrop: (event) => this.#drop(event),
      },
      html("h2", { id: "try-heading", tabindex: -1 }, "Try"),
      this.notice.element,
      html("div", { class: "columns" }, input, this.answer.numbers, this.answer.pictures),
      this.requests.element,
    );
    return element;
  }

  #sample(image, index) {
    const [height, width] = [image[0].length, image[0][0].length];
    const picture = canvas(`Sample ${index + 1}`, height, width);
    show(picture, image);
    const load = () => {
      this.drawing?.raster.load(Uint8Array.from(image.flat(2), (value) => Math.round(255 * value)));
      this.#drew();
    };
    return html("button", { type: "button", class: "thumbnail", disabled: !this.drawing, onclick: load }, picture);
  }

  #drew() {
    this.file = null;
    this.hint.textContent = "";
    this.drawing?.paint();
    if (this.drawing?.raster.empty) this.#clear();
    else this.#ask();
  }

  #undo() {
    this.drawing?.raster.undo();
    this.#drew();
  }

  #clear() {
    this.file = null;
    this.latest.stop();
    this.notice.clear();
    this.drawing?.raster.clear();
    this.drawing?.paint();
    this.hint.textContent = EMPTY;
    this.#use(null);
    this.answer.clear();
  }

  #paste(event) {
    const [file] = event.clipboardData?.files ?? [];
    if (file) this.choose(file);
  }

  #drop(event) {
    event.preventDefault();
    const entries = dropped(event.dataTransfer);
    if (entries.length > 1 || entries.some((entry) => !(entry instanceof File) && entry.isDirectory))
      this.dispatchEvent(new CustomEvent("many", { detail: entries }));
    else this.choose(event.dataTransfer.files[0]);
  }

  /**
   * Ask about a file.
   * @param {File|undefined} file
   * @param {HTMLInputElement|null} [input] that it was chosen by
   */
  choose(file, input = null) {
    if (!file) return;
    this.#clear();
    this.file = file;
    if (input) input.value = ""; // so that the same file can be chosen again
    this.hint.textContent = file.name;
    if (file.size > this.limits.max_body_bytes)
      this.notice.show(Problem.tooLarge(file.size, this.limits.max_body_bytes), () => this.#ask());
    else this.#ask();
  }

  #ask() {
    this.notice.clear();
    const input = this.file ?? this.drawing?.raster;
    if (input) this.latest.push(input);
  }

  async #subject(input) {
    if (input instanceof File) return subjectOfFile(input);
    const drawn = { name: input.base ? "The sample" : "As drawn", pixels: input.pixels() };
    const asMnist = isMnist(this.manifest) && !input.base ? fitted(input.finePixels()) : null;
    const boxed = asMnist && [{ name: "Fitted and centred as MNIST's digits were", pixels: asMnist }];
    return subjectOfPixels(boxed ? [...boxed, drawn] : [drawn], input, this.manifest.preparation);
  }

  #use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.subject = subject;
    this.requests.use(subject);
    this.dispatchEvent(new Event("subject"));
  }

  get #first() {
    return this.subject && (this.subject.first ?? this.subject);
  }

  /** A number that follows the hand: of one image, by few samples. */
  async #quickly(input, signal) {
    this.answer.expect();
    const subject = await this.#subject(input);
    signal.throwIfAborted();
    this.#use(subject);
    await this.#estimate(this.#first, signal, "laplace", { proposal: "laplace", num_samples: QUICK_SAMPLES });
  }

  async #estimate(subject, signal, proposal, query) {
    const started = performance.now();
    const request = requestOf(subject, { ...this.query, ...query }, signal);
    const answer = await this.api.ask("v1/log-likelihood", request);
    this.answer.estimates(this.subject?.names ?? [], answer.results, proposal, performance.now() - started);
  }

  async #reconstruct(signal) {
    const answer = await this.api.ask("v1/reconstruct", requestOf(this.#first, { ...this.query, as: "array" }, signal));
    this.answer.reconstruction(answer.prepared[0], answer.reconstructions[0], this.subject?.names[0] ?? "");
  }

  async #judge(signal) {
    const request = requestOf(this.#first, { ...this.query, explain: true, as: "array" }, signal);
    try {
      const answer = await this.api.ask("v1/anomaly-scores", request);
      this.answer.judgements(answer);
      this.dispatchEvent(
        new CustomEvent("judged", { detail: { method: answer.method, score: answer.results[0].score } }),
      );
    } catch (error) {
      if (!(error instanceof Problem) || error.slug !== "uncalibrated-model") throw error;
      this.answer.uncalibrated(error);
    }
  }
}
