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
    { name: "Python", text: python(url, subject, withKey) },
    { name: "JavaScript (fetch)", text: javascript(url, subject, withKey) },
  ];
}

function curl(url, { type, text, file }, withKey) {
  const key = withKey ? ` \\\n  -H "X-API-Key: $LOGPX_KEY"` : "";
  const body = text === null ? `--data-binary ${quoted(`@${file}`)}` : `--data ${quoted(text)}`;
  return `curl ${quoted(url)}${key} \\\n  -H ${quoted(`Content-Type: ${type}`)} \\\n  ${body}`;
}

function python(url, { type, text, file, resize }, withKey) {
  const { origin, pathname, searchParams: query } = new URL(url);
  const [prefix, route] = pathname.split("/v1/");
  const version = query.has("version") ? `, version=${query.get("version")}` : "";
  const key = withKey ? `, key=os.environ["LOGPX_KEY"]` : "";
  const isArray = !text && type.endsWith("npy");
  const flags = (query.has("explain") ? ", explain=True" : "") + (resize ? ", resize=True" : "");
  let images = JSON.stringify(file);
  if (isArray) images = `np.load(${images})`;
  if (text) images = `[${JSON.parse(text).images.map((one) => `b64decode("${one}")`)}]`;
  return [
    ...(text ? ["from base64 import b64decode"] : []),
    ...(withKey ? ["import os"] : []),
    ...(isArray ? ["import numpy as np"] : []),
    "from logpx import Client",
    "",
    `client = Client("${origin}${prefix}", model="${query.get("model")}"${version}${key})`,
    `images = ${images}`,
    `print(client.${route.replace("-", "_")}(images${flags}))`,
  ].join("\n");
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
