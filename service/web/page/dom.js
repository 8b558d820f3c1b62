/** Elements. Texts are always text nodes: nothing that a service or a file says becomes markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} name
 * @param {Object<string, unknown>} [attributes] `on…` listens; true is an empty attribute; false and null are none
 * @param {...(Node|string|number|null)} children
 * @returns {any}
 */
export function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/**
 * An SVG element.
 * @param {string} name
 * @param {Object<string, unknown>} [attributes]
 * @param {...(Node|string|number|null)} children
 * @returns {any}
 */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/**
 * A table inside a box that scrolls if the window is narrow.
 * @param {string} caption
 * @param {string[]} heads
 * @param {(Node|string|number|null)[][]} rows the first cell of each row is its heading
 * @returns {HTMLElement}
 */
export function table(caption, heads, rows) {
  const body = rows.map(([first, ...others]) =>
    html("tr", {}, html("th", { scope: "row" }, first), ...others.map((cell) => html("td", {}, cell))),
  );
  return html(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    html(
      "table",
      {},
      html("caption", {}, caption),
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
      html("tbody", {}, ...body),
    ),
  );
}

/**
 * A table that is shown on demand: what a plot says, for those who cannot see it.
 * @param {string} summary
 * @param {HTMLElement} content
 * @returns {HTMLDetailsElement}
 */
export function details(summary, content) {
  return html("details", {}, html("summary", {}, summary), content);
}

/**
 * The numbers of a plot as a table; open if the one was that it takes the place of.
 * @param {HTMLElement} place
 * @param {string} caption
 * @param {string[]} heads
 * @param {(Node|string|number|null)[][]} rows
 * @returns {HTMLDetailsElement}
 */
export function numbersOf(place, caption, heads, rows) {
  const made = details("The same as a table", table(caption, heads, rows));
  made.open = place.querySelector("details")?.open ?? false;
  return made;
}

/** A function that draws in the next frame, once however often it is called. */
export function nextFrame(/** @type {() => void} */ draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/**
 * @param {Element} element
 * @param {Object<string, unknown>} attributes
 * @param {(Node|string|number|null)[]} children
 * @returns {Element}
 */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))),
  );
  return element;
}
