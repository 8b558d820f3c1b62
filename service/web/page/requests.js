/** The very requests that the page sends, ready to copy. */

import { html } from "./dom.js";
import { snippets } from "./snippets.js";
import { requestOf } from "./subject.js";

/** @type {{path: string, query: Object<string, string|boolean>, name: string, all: boolean}[]} */
const ROUTES = [
  { path: "v1/log-likelihood", query: {}, name: "log P(x)", all: true },
  { path: "v1/anomaly-scores", query: { explain: true, as: "array" }, name: "p-value and map", all: false },
  { path: "v1/reconstruct", query: { as: "array" }, name: "reconstruction", all: false },
];

export class Requests {
  #subject = /** @type {import("./subject.js").Subject|null} */ (null);

  /**
   * @param {import("./api.js").Api} api
   * @param {Object<string, string|number>} query which model
   */
  constructor(api, query) {
    this.api = api;
    this.query = query;
    const options = ROUTES.map(({ name }, index) => html("option", { value: index }, name));
    this.route = html("select", { id: "route", onchange: () => this.#show() }, ...options);
    this.copied = html("p", { class: "hint", role: "status" });
    this.list = html("div", { class: "snippets" });
    this.element = html(
      "details",
      { class: "card", ontoggle: () => this.#show() },
      html("summary", {}, "This request as curl, Python and fetch"),
      html("p", {}, html("label", { for: "route" }, "Request for "), this.route),
      this.list,
      this.copied,
    );
  }

  /** @param {import("./subject.js").Subject|null} subject */
  use(subject) {
    this.#subject = subject;
    this.#show();
  }

  #show() {
    if (!this.element.open) return;
    this.copied.textContent = "";
    if (!this.#subject) {
      this.list.replaceChildren(html("p", {}, "There is no image yet."));
      return;
    }
    const { path, query, all } = ROUTES[Number(this.route.value)];
    const subject = all ? this.#subject : (this.#subject.first ?? this.#subject);
    const asked = requestOf(subject, { ...this.query, ...query });
    const url = this.api.url(path, asked.query);
    const shown = snippets(url, subject, this.api.hasKey);
    this.list.replaceChildren(...shown.map(({ name, text }) => this.#snippet(name, text)));
  }

  #snippet(/** @type {string} */ name, /** @type {string} */ text) {
    const code = html("pre", { tabindex: 0, role: "region", "aria-label": name }, html("code", {}, text));
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(text);
        this.copied.textContent = `${name}: copied.`;
      } catch {
        getSelection()?.selectAllChildren(code); // without TLS browsers have no clipboard for pages
        this.copied.textContent = `${name}: selected. Copy it with the keyboard.`;
      }
    };
    const button = html("button", { type: "button", onclick: copy, "aria-label": `Copy ${name}` }, "Copy");
    return html("div", {}, html("h4", {}, name, " ", button), code);
  }
}
