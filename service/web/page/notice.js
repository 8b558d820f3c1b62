/** A notice about a refused request: what the service said, what to do, and when it will be sent again. */

import { html } from "./dom.js";
import { Problem } from "./problem.js";

export class Notice {
  #timer = 0;

  constructor() {
    this.element = html("div", { class: "notice", role: "alert", hidden: true });
  }

  /** Nothing is wrong. */
  clear() {
    clearInterval(this.#timer);
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  /**
   * @param {unknown} error a Problem; anything else is a fault of the page, and is thrown again
   * @param {() => void} retry sends the request again: after the countdown, or when asked
   */
  show(error, retry) {
    this.clear();
    if (!(error instanceof Problem)) throw error;
    const status = error.status ? ` (${error.status} ${error.slug})` : "";
    const again = () => {
      this.clear();
      retry();
    };
    const id = error.requestId ? html("p", { class: "hint" }, `Request ${error.requestId}`) : null;
    const countdown = html("p", { "aria-live": "off" });
    this.element.append(
      html("p", {}, html("strong", {}, `${error.title}${status}`)),
      html("p", {}, `${error.where}${error.detail} ${error.advice}`.trim()),
      countdown,
      html("button", { type: "button", onclick: again }, "Try again now"),
    );
    if (id) this.element.append(id);
    this.element.hidden = false;
    if (error.retryAfter === null) return;
    let left = error.retryAfter;
    const tell = () => {
      countdown.textContent = `Trying again in ${left} s.`;
    };
    tell();
    this.#timer = setInterval(() => {
      left -= 1;
      if (left <= 0) again();
      else tell();
    }, 1000);
  }
}
