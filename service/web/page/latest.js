/** Requests that follow a hand: one in flight, the latest input wins, and the last input is always sent. */

/** @template T */
export class Latest {
  /** @type {{input: T}|null} */
  #waiting = null;
  #running = false;
  #abort = new AbortController();

  /**
   * @param {((input: T, signal: AbortSignal) => Promise<void>)[]} steps in this order for each input. The first one
   *     always finishes, so that its answers keep coming while inputs do; a newer input stops the others.
   * @param {(error: unknown, input: T) => void} failed
   */
  constructor(steps, failed) {
    this.steps = steps;
    this.failed = failed;
    this.interruptible = false;
  }

  /** @param {T} input */
  push(input) {
    this.#waiting = { input };
    if (this.interruptible) this.#abort.abort();
    if (!this.#running) this.#run();
  }

  /** Forget what waits, and stop what runs. */
  stop() {
    this.#waiting = null;
    this.#abort.abort();
  }

  async #run() {
    this.#running = true;
    while (this.#waiting) {
      const { input } = this.#waiting;
      this.#waiting = null;
      const abort = new AbortController();
      this.#abort = abort;
      try {
        for (const [index, step] of this.steps.entries()) {
          this.interruptible = index > 0;
          await step(input, abort.signal);
          if (this.#waiting || abort.signal.aborted) break;
        }
      } catch (error) {
        if (!abort.signal.aborted) this.failed(error, input);
      }
      this.interruptible = false;
    }
    this.#running = false;
  }
}
