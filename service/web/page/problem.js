/** A request that was not answered with 200: what the service said, and what to do about it. */

const ADVICE = {
  "invalid-image": "Choose another image, or save it again as PNG.",
  "uncalibrated-model": "Without a calibration there are scores, but no p-values: run python -m service calibrate.",
  "unsupported-media-type": "Choose a PNG, JPEG, WebP or npy file.",
  unauthorized: "Enter one of the service's keys above.",
  "unknown-model": "The model or version is gone: reload the page.",
  "limit-exceeded": "Choose a smaller image, or ask whoever runs the service for a higher limit.",
  "queue-full": "The service is busy.",
  "memory-full": "The service is busy.",
  "too-many-loads": "The service is busy loading models.",
  "not-ready": "The service is loading its models, or is about to stop.",
  "deadline-exceeded": "The service took too long.",
  "broken-model": "The model's files do not pass their checks; the service's log says which.",
  "out-of-device-memory": "The GPU has no room for this request now.",
  "internal-error": "This is a bug of the service; its log has the details under the request's id.",
  unreachable: "Check that the service runs and that the network works.",
};
const RETRIED = new Set(["queue-full", "memory-full", "too-many-loads", "not-ready"]);
const DEFAULT_RETRY_SECONDS = 2;

export class Problem extends Error {
  /**
   * @param {{slug: string, status: number, title: string, detail: string, index?: number, requestId?: string,
   *     retryAfter?: number}} told
   */
  constructor(told) {
    super(told.detail);
    this.slug = told.slug;
    this.status = told.status;
    this.title = told.title;
    this.detail = told.detail;
    this.index = told.index;
    this.requestId = told.requestId;
    /** After how many seconds it is worth to try again without being asked; null: it is not. */
    const busy = RETRIED.has(told.slug) || told.status === 429 || (told.status === 503 && told.retryAfter);
    this.retryAfter = busy ? told.retryAfter || DEFAULT_RETRY_SECONDS : null;
  }

  /**
   * From an answer; one that is no problem document comes from a proxy in between.
   * @param {Response} response
   * @returns {Promise<Problem>}
   */
  static async of(response) {
    const text = await response.text().catch(() => "");
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    const common = { status: response.status, retryAfter: seconds > 0 ? seconds : undefined };
    try {
      const told = JSON.parse(text);
      const slug = String(told.type).replace("urn:logpx:problem:", "");
      const { title, detail, index, request_id: requestId } = told;
      return new Problem({ ...common, slug, title: String(title), detail: String(detail), index, requestId });
    } catch {
      const detail = "The answer is not the service's own; a proxy in front of it may have sent it.";
      return new Problem({ ...common, slug: "foreign", title: response.statusText || "Not answered", detail });
    }
  }

  /**
   * A connection that failed before an answer came.
   * @returns {Problem}
   */
  static unreachable() {
    const detail = "The connection failed before an answer came.";
    return new Problem({ slug: "unreachable", status: 0, title: "The service cannot be reached", detail });
  }

  /**
   * A file that is known to be too large before it is sent.
   * @param {number} bytes
   * @param {number} most
   * @returns {Problem}
   */
  static tooLarge(bytes, most) {
    const detail = `The file has ${bytes} bytes; at most ${most} are accepted.`;
    return new Problem({ slug: "limit-exceeded", status: 413, title: "The file is too large", detail });
  }

  /** What to do about it. */
  get advice() {
    return ADVICE[this.slug] ?? "";
  }

  /** Which image of the request is at fault, in words; empty if it is none. */
  get where() {
    return this.index === undefined ? "" : `Image ${this.index + 1} of the request (index ${this.index}): `;
  }
}
