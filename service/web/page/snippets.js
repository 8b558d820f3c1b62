/** A request as commands that people can copy: curl, Python, and JavaScript. The key is never shown. */

/**
 * @param {string} url
 * @param {import("./subject.js").Subject} subject
 * @param {boolean} withKey whether the service needs a key
 * @returns {{name: string, text: string}[]}
 */
export function snippets(url, subject, withKey) {
  return [
    { name: "curl", text: curl(url, subject, withKey) },
    { name: "Python (httpx)", text: python(url, subject, withKey) },
    { name: "JavaScript (fetch)", text: javascript(url, subject, withKey) },
  ];
}

function curl(url, { type, text, file }, withKey) {
  const key = withKey ? ` \\\n  -H "X-API-Key: $LOGPX_KEY"` : "";
  const body = text === null ? `--data-binary ${quoted(`@${file}`)}` : `--data ${quoted(text)}`;
  return `curl ${quoted(url)}${key} \\\n  -H ${quoted(`Content-Type: ${type}`)} \\\n  ${body}`;
}

function python(url, { type, text, file }, withKey) {
  const key = withKey ? `"X-API-Key": os.environ["LOGPX_KEY"], ` : "";
  const lines = [`${withKey ? "import os\n\n" : ""}import httpx`, ""];
  if (text === null) lines.push("from pathlib import Path", "");
  const body = text === null ? `content=Path(${JSON.stringify(file)}).read_bytes()` : `content=${pythonText(text)}`;
  lines.push(
    "answer = httpx.post(",
    `    ${JSON.stringify(url)},`,
    `    headers={${key}"Content-Type": ${JSON.stringify(type)}},`,
    `    ${body},`,
    "    timeout=120,",
    ")",
    "answer.raise_for_status()",
    `print(answer.json()["results"])`.replace(`["results"]`, url.includes("/reconstruct") ? "" : `["results"]`),
  );
  return lines.join("\n");
}

function javascript(url, { type, text, file }, withKey) {
  const key = withKey ? `"X-API-Key": key, ` : "";
  const body = text === null ? `file /* ${file.replaceAll("*/", "")}, of an <input type="file"> */` : `'${text}'`;
  return [
    `const answer = await fetch(${JSON.stringify(url)}, {`,
    '  method: "POST",',
    `  headers: { ${key}"Content-Type": ${JSON.stringify(type)} },`,
    `  body: ${body},`,
    "});",
    "console.log(await answer.json());",
  ].join("\n");
}

/** One word of a POSIX shell. */
function quoted(/** @type {string} */ text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Base64 in JSON has no quote but ", and no backslash. */
function pythonText(/** @type {string} */ text) {
  return `'${text}'`;
}
