// @ts-check
// The same question as a shell command and as a program. The key itself is never shown.

/** @typedef {import("./api.js").Fields} Fields */

const KEY_VARIABLE = "WAVLLM_KEY";

/** @param {string} text as one word of a POSIX shell */
function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** @param {string} text as a Python literal; every JSON string is one */
function pythonText(text) {
  return JSON.stringify(text);
}

/** @param {string} name as curl reads it, which takes ; and , in a bare name for its own */
function curlFile(name) {
  const path = name.startsWith("-") ? `./${name}` : name;
  return /[;,"\\]/.test(path) ? `"${path.replace(/["\\]/g, "\\$&")}"` : path;
}

/**
 * @param {URL} url
 * @param {string} fileName
 * @param {Fields} fields
 * @param {boolean} withKey
 */
export function curlCommand(url, fileName, fields, withKey) {
  // --form-string, because -F would read a value that begins with @ or < from a file.
  const texts = Object.entries(fields).map(([name, value]) => `--form-string ${shellWord(`${name}=${value}`)}`);
  const words = [
    `curl -sS -N ${shellWord(url.href)}`,
    ...(withKey ? [`-H "authorization: Bearer $${KEY_VARIABLE}"`] : []),
    `-F ${shellWord(`file=@${curlFile(fileName)}`)}`,
    ...texts,
    "-F stream=true",
  ];
  return words.join(" \\\n  ");
}

/**
 * @param {URL} url
 * @param {string} fileName
 * @param {Fields} fields
 * @param {boolean} withKey
 */
export function pythonProgram(url, fileName, fields, withKey) {
  const entries = Object.entries(fields).map(([name, value]) => `    ${pythonText(name)}: ${pythonText(value)},`);
  const headers = `        headers={"authorization": f"Bearer {os.environ['${KEY_VARIABLE}']}"},`;
  return [
    ...(withKey ? ["import os", ""] : []),
    "import httpx  # pip install httpx",
    "",
    "fields = {",
    ...entries,
    "}",
    `with open(${pythonText(fileName)}, "rb") as clip:`,
    "    reply = httpx.post(",
    `        ${pythonText(url.href)},`,
    ...(withKey ? [headers] : []),
    "        data=fields,",
    '        files={"file": clip},',
    "        timeout=300,",
    "    )",
    "if reply.is_error:",
    "    raise SystemExit(reply.text)",
    'print(reply.json()["choices"][0]["message"]["content"])',
  ].join("\n");
}
