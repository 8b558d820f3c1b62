/** A table of many rows, of which only those in sight exist. */

import { html, nextFrame } from "./dom.js";

export const ROW_HEIGHT = 52;
const SPARE = 6;

/**
 * @template T
 * @typedef {Object} Column
 * @property {string} name
 * @property {string} width of the style sheet's classes
 * @property {((item: T) => string|number|null)|null} sortBy null: the table cannot be sorted by it; null values go last
 * @property {boolean} [descending] whether the first click sorts so
 * @property {boolean} [lasts] whether its cells are made once
 */

/** @template {{id: number}} T */
export class RowsTable {
  /** @type {T[]} */
  items = [];
  /** @type {Map<number, {row: HTMLTableRowElement, version: unknown}>} rows in sight, by their item's id */
  #shown = new Map();

  /**
   * @param {string} label
   * @param {Column<T>[]} columns
   * @param {{lasting(item: T): Node[], changing(item: T): Node[], version(item: T): unknown}} cells of a row: first
   *     those that are made once, then those that are made anew when the version of the item has changed
   * @param {() => void} sorted called when another order is wanted
   */
  constructor(label, columns, cells, sorted) {
    this.columns = columns;
    this.cells = cells;
    this.order = { column: 0, descending: false };
    this.heads = columns.map(({ name, width, sortBy, descending = false }, column) => {
      const sort = () => {
        const same = this.order.column === column;
        this.order = { column, descending: same ? !this.order.descending : descending };
        sorted();
      };
      const content = sortBy ? html("button", { type: "button", class: "sort", onclick: sort }, name) : name;
      return html("th", { scope: "col", class: width }, content);
    });
    this.body = html("tbody");
    this.table = html(
      "table",
      { class: "rows" },
      html("caption", { class: "unseen" }, label),
      html("thead", {}, html("tr", { "aria-rowindex": 1 }, ...this.heads)),
      this.body,
    );
    this.element = html(
      "div",
      { class: "rows-box", tabindex: 0, role: "region", "aria-label": label, onscroll: () => this.draw() },
      html("div", { class: "rows-all" }, this.table),
    );
  }

  /**
   * @param {T[]} items
   * @returns {T[]} in the order of the table
   */
  sorted(items) {
    const { column, descending } = this.order;
    const by = this.columns[column].sortBy ?? (({ id }) => id);
    const sign = descending ? -1 : 1;
    const keyed = items.map((item) => ({ item, key: by(item) }));
    keyed.sort((one, other) => {
      if (one.key === null || other.key === null) return Number(one.key === null) - Number(other.key === null);
      const order = one.key < other.key ? -sign : one.key > other.key ? sign : 0;
      return order || one.item.id - other.item.id;
    });
    return keyed.map(({ item }) => item);
  }

  /** @param {T[]} items in the order to show */
  show(items) {
    this.items = items;
    const { column, descending } = this.order;
    this.heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.table.setAttribute("aria-rowcount", String(items.length + 1));
    this.element.firstChild.style.height = `${ROW_HEIGHT * (items.length + 1)}px`;
    this.draw();
  }

  /** Draw the rows in sight in the next frame. */
  draw = nextFrame(() => this.#draw());

  #draw() {
    const fits = Math.ceil(this.element.clientHeight / ROW_HEIGHT) + 2 * SPARE;
    const top = Math.floor(this.element.scrollTop / ROW_HEIGHT) - SPARE;
    const first = Math.max(0, Math.min(top, this.items.length - fits));
    const inSight = this.items.slice(first, first + fits);
    const ids = new Set(inSight.map(({ id }) => id));
    const focused = document.activeElement !== this.element && this.element.contains(document.activeElement);
    this.table.style.marginTop = `${first * ROW_HEIGHT}px`; // the heads stick to the box while the table moves below
    for (const [id, { row }] of [...this.#shown])
      if (!ids.has(id)) {
        row.remove();
        this.#shown.delete(id);
      }
    inSight.forEach((item, index) => {
      const row = this.#row(item);
      row.setAttribute("aria-rowindex", String(first + index + 2));
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    if (focused && !this.element.contains(document.activeElement)) this.element.focus({ preventScroll: true });
  }

  /** @returns {HTMLTableRowElement} */
  #row(/** @type {T} */ item) {
    const version = this.cells.version(item);
    let shown = this.#shown.get(item.id);
    if (shown?.version === version) return shown.row;
    const lasting = shown ? [] : this.cells.lasting(item);
    shown ??= { row: html("tr", {}, ...lasting), version };
    const { row } = shown;
    const kept = this.columns.filter(({ lasts }) => lasts).length;
    for (const cell of [...row.children].slice(kept)) cell.remove();
    row.append(...this.cells.changing(item));
    this.#shown.set(item.id, { row, version });
    return row;
  }
}
