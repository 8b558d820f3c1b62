/** The page: connects to the service, asks for a key if it needs one, and shows a model. */

import { Api } from "./api.js";
import { html } from "./dom.js";
import { queryOf } from "./facts.js";
import { Inspect } from "./inspect.js";
import { Ladder } from "./ladder.js";
import { Model } from "./model.js";
import { Notice } from "./notice.js";
import { Problem } from "./problem.js";
import { Try } from "./try.js";

const KEY = /^[!-~]+$/;

class Page {
  /** @type {{element: HTMLElement, close(): void}[]} */
  views = [];

  constructor() {
    this.api = new Api(document.baseURI);
    this.notice = new Notice();
    this.status = at("status");
    this.main = at("main");
    this.models = [];
    at("notice").replaceWith(this.notice.element);
    this.api.addEventListener("unauthorized", () => this.#askForKey());
    at("key-form").addEventListener("submit", (event) => this.#useKey(event));
    at("model").addEventListener("change", () => this.#choose());
    at("version").addEventListener("change", () => this.#chooseVersion());
  }

  /** Learn which models there are; while the service is loading them, again and again. */
  async connect() {
    this.notice.clear();
    this.status.textContent = "Connecting to the service…";
    try {
      const [{ models }, limits] = await Promise.all([this.api.ask("v1/models"), this.api.ask("v1/limits")]);
      this.models = models.filter(({ manifest }) => manifest);
      this.limits = limits;
    } catch (error) {
      this.status.textContent = "";
      if (!(error instanceof Problem && error.status === 401)) this.notice.show(error, () => this.connect());
      return;
    }
    this.#forgetKey();
    const options = this.models.map(({ name }) => html("option", { value: name }, name));
    at("model").replaceChildren(...options);
    const start = this.models.find((model) => model.default) ?? this.models[0];
    if (start) at("model").value = start.name;
    at("model-form").hidden = false;
    this.#choose();
  }

  /** The default version of the model that is chosen. */
  #choose() {
    const summary = this.models.find(({ name }) => name === at("model").value);
    const versions = [...(summary?.versions ?? [])].reverse();
    at("version").replaceChildren(...versions.map((version) => html("option", { value: version }, version)));
    if (summary) at("version").value = String(summary.manifest.version);
    this.#show(summary);
  }

  async #chooseVersion() {
    this.notice.clear();
    const path = `v1/models/${encodeURIComponent(at("model").value)}`;
    const version = at("version").value;
    this.status.textContent = `Loading version ${version}…`;
    try {
      const summary = await this.api.ask(path, { query: { version } });
      if (version === at("version").value) this.#show(summary);
    } catch (error) {
      this.status.textContent = "";
      this.notice.show(error, () => this.#chooseVersion());
    }
  }

  #show(/** @type {any} */ summary) {
    for (const view of this.views) view.close();
    this.views = [];
    this.main.replaceChildren();
    at("views").hidden = true;
    if (!summary) {
      this.status.textContent = "The service has no model that it can serve.";
      return;
    }
    const { manifest } = summary;
    const { channels, height, width } = manifest.image;
    const colour = channels === 1 ? "grey" : channels === 3 ? "colour" : `${channels} channels`;
    at("model-facts").textContent = `${height}×${width}, ${colour}, ${manifest.likelihood.kind}`;
    this.status.textContent = "";
    const tried = new Try(this.api, manifest, this.limits, queryOf(summary));
    const ladder = new Ladder(this.api, tried.query, this.limits);
    const inspect = new Inspect(this.api, manifest, this.limits);
    const model = new Model(this.api, summary);
    tried.addEventListener("subject", () => {
      ladder.use(tried.subject);
      model.use(tried.subject);
    });
    tried.addEventListener("judged", (event) => model.calibration.place(event.detail));
    tried.addEventListener("many", (event) => {
      goTo("inspect");
      inspect.drop(event.detail);
    });
    inspect.addEventListener("look", (event) => {
      goTo("try");
      tried.choose(event.detail);
    });
    this.views = [tried, ladder, inspect, model];
    this.main.replaceChildren(...this.views.map((view) => view.element));
    at("views").hidden = false;
    tried.drawing?.paint();
  }

  #askForKey() {
    this.notice.clear();
    this.status.textContent = this.api.hasKey ? "The service does not accept this key." : "";
    if (!at("key-form").hidden) return;
    at("key-form").hidden = false;
    at("key").focus();
  }

  #forgetKey() {
    at("key-form").hidden = true;
    at("key").value = this.status.textContent = "";
  }

  #useKey(/** @type {Event} */ event) {
    event.preventDefault();
    const key = at("key").value.trim();
    if (!KEY.test(key)) {
      this.status.textContent = "A key has only printable ASCII characters, without spaces.";
      return;
    }
    this.api.use(key);
    if (this.views.length) this.#forgetKey(); // what is shown stays, and has buttons to try again
    else this.connect();
  }
}

/** To a view's heading. */
function goTo(/** @type {string} */ id) {
  at(id).scrollIntoView();
  at(`${id}-heading`).focus({ preventScroll: true });
}

/** @returns {any} */
function at(/** @type {string} */ id) {
  return document.getElementById(id);
}

new Page().connect();
