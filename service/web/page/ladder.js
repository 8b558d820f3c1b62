/** Why believe it: estimates of the same image by every proposal, with more and more samples. */

import { html, numbersOf } from "./dom.js";
import { anchorOf, boundOf, ladderPlot } from "./ladder_plot.js";
import { Notice } from "./notice.js";
import { requestOf } from "./subject.js";
import { nats, number, reliability } from "./words.js";

/** @typedef {{proposal: string, samples: number, result: any}} Rung */

const COUNTS = {
  prior: [10, 100, 1000, 10000],
  encoder: [10, 100, 1000, 10000],
  laplace: [10, 100, 400, 1000, 4000],
  annealed: [400, 1600],
};
const INTRODUCTION =
  "log P(x) is an integral over all codes z, and no formula gives it. It is estimated from K samples of z. " +
  "Where these come from decides how many are needed: from the prior, hardly any explains this image; from the " +
  "encoder, more; from the posterior of this very image (laplace, annealed), few are enough. Every estimate is " +
  "more often too low than too high. Estimates that agree, from different proposals, are the reason to believe " +
  "the number. Hollow marks are not reliable, and the service says so itself.";

export class Ladder {
  #abort = new AbortController();
  /** @type {Rung[]} */
  #rungs = [];
  #next = 0;

  /**
   * @param {import("./api.js").Api} api
   * @param {Object<string, string|number>} query which model
   * @param {any} limits the answer of v1/limits
   */
  constructor(api, query, limits) {
    this.api = api;
    this.query = query;
    this.plan = Object.entries(COUNTS).flatMap(([proposal, counts]) =>
      counts
        .filter((samples) => samples <= Math.min(limits.max_num_samples, limits.max_rows))
        .map((samples) => ({ proposal, samples })),
    );
    /** @type {import("./subject.js").Subject|null} */
    this.subject = null;
    this.notice = new Notice();
    this.start = html("button", { type: "button", class: "main", onclick: () => this.#run() }, "Estimate in every way");
    this.stop = html("button", { type: "button", hidden: true, onclick: () => this.#stop() }, "Stop");
    this.progress = html("p", { class: "hint", role: "status" });
    this.shown = html("div", {});
    this.element = html(
      "section",
      { id: "why", "aria-labelledby": "why-heading" },
      html("h2", { id: "why-heading" }, "Why believe it"),
      html(
        "div",
        { class: "card" },
        html("p", {}, INTRODUCTION),
        html("div", { class: "buttons" }, this.start, this.stop),
        this.progress,
        this.notice.element,
        this.shown,
      ),
    );
    this.use(null);
  }

  /** Another image: what was estimated is of the one before. */
  use(/** @type {import("./subject.js").Subject|null} */ subject) {
    this.close();
    this.subject = subject && (subject.first ?? subject);
    this.#rungs = [];
    this.#next = 0;
    this.shown.replaceChildren();
    this.start.disabled = !this.subject;
    this.start.hidden = false;
    this.stop.hidden = true;
    this.progress.textContent = this.subject
      ? `${this.plan.length} estimates of: ${this.subject.names[0]}`
      : "There is no image yet.";
  }

  /** Stop all requests. */
  close() {
    this.#abort.abort();
    this.notice.clear();
  }

  #stop() {
    this.#abort.abort();
    this.start.hidden = false;
    this.stop.hidden = true;
    this.progress.textContent = `Stopped after ${this.#rungs.length} of ${this.plan.length} estimates.`;
  }

  async #run() {
    if (this.#next >= this.plan.length) this.use(this.subject);
    const abort = new AbortController();
    this.#abort = abort;
    const focused = document.activeElement === this.start;
    this.start.hidden = true;
    this.stop.hidden = false;
    if (focused) this.stop.focus();
    try {
      for (; this.#next < this.plan.length; this.#next++) {
        const { proposal, samples } = this.plan[this.#next];
        const place = `${this.#next + 1} of ${this.plan.length}`;
        this.progress.textContent = `Estimate ${place}: ${proposal}, ${samples} samples`;
        const query = { ...this.query, proposal, num_samples: samples };
        const answer = await this.api.ask("v1/log-likelihood", requestOf(this.subject, query, abort.signal));
        this.#rungs.push({ proposal, samples, result: answer.results[0] });
        this.#show();
      }
      this.progress.textContent = `All ${this.plan.length} estimates are done.`;
    } catch (error) {
      if (!abort.signal.aborted) this.notice.show(error, () => this.#run());
    }
    if (abort.signal.aborted) return;
    const moved = document.activeElement === this.stop;
    this.start.hidden = false;
    this.stop.hidden = true;
    if (moved) this.start.focus();
  }

  #show() {
    const rows = this.#rungs.map(({ proposal, samples, result }) => [
      proposal,
      String(samples),
      number(result.log_likelihood),
      result.std_error === null ? "none" : number(result.std_error),
      reliability(result),
    ]);
    const anchor = anchorOf(this.#rungs);
    const { log_likelihood: best, std_error: error } = anchor.result;
    const { elbo, gap } = boundOf(this.#rungs);
    const sentence =
      `Best estimate, by ${anchor.proposal}: ${nats(best, error)}. ` +
      `The ELBO, which training raises, is ${nats(elbo, null)}. The gap between them is ` +
      `KL[q(z|x) ‖ p(z|x)] = ${nats(gap, null)}: how far the encoder's answer is from the posterior. ` +
      "The ELBO is a mean over encoder samples, so its line moves until it is the mean over many.";
    const marks = "Hollow: not reliable. Arrow: the estimate is below the plot. Lines: 95 % intervals.";
    const heads = ["Proposal", "Samples K", "log P(x), nats", "Standard error", "Reliable"];
    const numbers = numbersOf(this.shown, "Estimates of log P(x)", heads, rows);
    this.shown.replaceChildren(
      ladderPlot(this.#rungs),
      html("p", { class: "hint" }, marks),
      html("p", {}, sentence),
      numbers,
    );
  }
}
