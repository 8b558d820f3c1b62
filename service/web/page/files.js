/** Files of a folder or of a drop. */

/** Files that systems and tools leave in folders, and that nobody means. */
const HIDDEN = /^(\..*|thumbs\.db|desktop\.ini)$/i;

/**
 * @typedef {Object} Found
 * @property {string} path with the folders below the one that was chosen
 * @property {File} file
 */

/**
 * What was dropped. To be called while the event is handled: later the browser has forgotten it.
 * @param {DataTransfer} transfer
 * @returns {(FileSystemEntry|File)[]}
 */
export function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  return entries.flatMap((entry) => entry ?? []);
}

/**
 * All files of what was dropped, those in folders among them, in the order of their paths.
 * @param {(FileSystemEntry|File)[]} entries
 * @returns {Promise<Found[]>}
 */
export async function filesOf(entries) {
  /** @type {Found[]} */
  const found = [];
  const left = [...entries];
  for (let entry = left.pop(); entry; entry = left.pop()) {
    if (entry instanceof File) found.push({ path: entry.name, file: entry });
    else if (entry.isDirectory) left.push(...(await children(/** @type {FileSystemDirectoryEntry} */ (entry))));
    else found.push(await opened(/** @type {FileSystemFileEntry} */ (entry)));
  }
  return visible(found);
}

/**
 * The files of an input element.
 * @param {FileList} files
 * @returns {Found[]}
 */
export function chosen(files) {
  return visible([...files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
}

function visible(/** @type {Found[]} */ found) {
  const kept = found.filter(({ path }) => !path.split("/").some((part) => HIDDEN.test(part)));
  const order = new Intl.Collator("en", { numeric: true });
  return kept.sort((one, other) => order.compare(one.path, other.path));
}

/** A folder's entries; browsers hand out a hundred at a time. */
async function children(/** @type {FileSystemDirectoryEntry} */ folder) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some);
  }
}

/** @returns {Promise<Found>} */
async function opened(/** @type {FileSystemFileEntry} */ entry) {
  /** @type {File} */
  const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
  return { path: entry.fullPath.replace(/^\//, ""), file };
}
