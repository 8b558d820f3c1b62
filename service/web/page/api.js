/** The service's routes, with the key if there is one. */

import { Problem } from "./problem.js";

export class Api extends EventTarget {
  #key = "";

  /** @param {string} base the page's own address: every route is relative to it, so a prefix does not matter */
  constructor(base) {
    super();
    this.base = base;
  }

  /** Whether a key is sent. */
  get hasKey() {
    return this.#key !== "";
  }

  /**
   * Send this key from now on. It is kept in this object only: a reload of the page forgets it.
   * @param {string} key
   */
  use(key) {
    this.#key = key;
  }

  /**
   * @param {string} path like "v1/models"
   * @param {Object<string, string|number|boolean>} [query]
   * @returns {string}
   */
  url(path, query = {}) {
    const url = new URL(path, this.base);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
    return url.href;
  }

  /**
   * The JSON answer of one request.
   * @param {string} path
   * @param {{query?: Object<string, string|number|boolean>, type?: string, body?: BodyInit,
   *     signal?: AbortSignal}} [request]
   * @returns {Promise<any>}
   * @throws {Problem}
   */
  async ask(path, { query, type, body, signal } = {}) {
    const headers = { Accept: "application/json" };
    if (type) headers["Content-Type"] = type;
    if (this.#key) headers["X-API-Key"] = this.#key;
    let response;
    try {
      const method = body === undefined ? "GET" : "POST";
      response = await fetch(this.url(path, query), { method, headers, body, signal, cache: "no-store" });
      if (response.ok) {
        const answer = await response.json();
        signal?.throwIfAborted();
        return answer;
      }
    } catch (error) {
      if (signal?.aborted) throw error;
      throw Problem.unreachable();
    }
    const problem = await Problem.of(response);
    if (problem.status === 401) this.dispatchEvent(new Event("unauthorized"));
    throw problem;
  }
}
