// @ts-check
// The server as this page sees it: what it serves, and one streamed question.

/**
 * @typedef {{message: string, param: ?string, code: string}} ErrorDetail
 * @typedef {{queue_ms: number, decode_ms: number, encode_ms: number, ttft_ms: number, total_ms: number}} Timings
 * @typedef {{prompt_tokens: number, completion_tokens: number,
 *   prompt_tokens_details: {audio_tokens: number, cached_tokens: number}}} Usage
 * @typedef {{choices: {delta: {content?: string}, finish_reason: ?string}[], error?: ErrorDetail,
 *   timings?: Timings, usage?: Usage}} Chunk
 * @typedef {{id: string, max_audio_seconds: number, max_context_tokens: number, max_new_tokens: number,
 *   max_prompt_chars: number, max_upload_bytes: number, formats: string[], merged_prompt: ?string,
 *   random_weights: boolean, fingerprint: string}} Model
 * @typedef {{state: string, num_requests_running: number, num_requests_waiting: number,
 *   kv_cache_usage: number}} Load
 * @typedef {{text: string, finishReason: ?string, timings: ?Timings, usage: ?Usage, requestId: ?string}} Answer
 * @typedef {{[name: string]: string}} Fields
 */

const KEY_ITEM = "wavllm-api-key";
export const CHAT_URL = new URL("v1/speech/chat", document.baseURI);

/** A refusal or a failure, with all that the server told of it. */
export class ApiError extends Error {
  /**
   * @param {Partial<ErrorDetail>} detail
   * @param {{status?: number, requestId?: ?string, retryAfter?: ?string}} [context]
   */
  constructor(detail, { status, requestId = null, retryAfter = null } = {}) {
    super(detail.message || "The server sent an answer that this page does not understand.");
    this.param = detail.param ?? null;
    this.code = detail.code ?? null;
    this.status = status ?? null;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

let key = storedKey();

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? "";
  } catch {
    return ""; // site data is blocked
  }
}

/** @returns {string} the API key of this tab, or "" */
export function apiKey() {
  return key;
}

/** @param {string} given an empty one forgets */
export function keepApiKey(given) {
  key = given;
  try {
    if (key) sessionStorage.setItem(KEY_ITEM, key);
    else sessionStorage.removeItem(KEY_ITEM);
  } catch {
    // Site data is blocked: it is kept until the page goes.
  }
}

/** @returns {Promise<Model>} */
export async function fetchModel() {
  const model = (await fetchJson("v1/models")).data?.[0];
  if (!model) throw new ApiError({ code: "not_understood" });
  return model;
}

/** @returns {Promise<Load>} */
export function fetchLoad() {
  return fetchJson("v1/load");
}

/** @returns {Promise<string>} starting, ready, draining, ...; asks for no key */
export async function fetchState() {
  // Not ready is a 503 with the same body.
  return (await jsonOf(await request(new URL("readyz", document.baseURI), {}))).status ?? "unreachable";
}

/** @param {string} path */
async function fetchJson(path) {
  const response = await request(new URL(path, document.baseURI), {});
  if (!response.ok) throw await errorOf(response);
  return jsonOf(response);
}

/**
 * @param {Response} response
 * @returns {Promise<any>} Throws ApiError for what is no JSON object: a proxy's page, half a body
 */
async function jsonOf(response) {
  const body = await response.json().catch(() => null);
  if (body === null || typeof body !== "object") throw new ApiError({ code: "not_understood" }, response);
  return body;
}

/**
 * @param {URL} url
 * @param {RequestInit & {headers?: {[name: string]: string}}} options
 */
async function request(url, options) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  try {
    return await fetch(url, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError({ message: "The server cannot be reached.", code: "network" });
  }
}

/** @param {unknown} error whether it only says that the user stopped */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @param {Response} response */
async function errorOf(response) {
  const context = {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  };
  // A proxy in between may answer with a page of its own.
  const body = await response.json().catch(() => null);
  const detail = body?.error ?? { message: `The server answered with status ${response.status}.` };
  return new ApiError(detail, context);
}

/**
 * Ask about a clip; the text comes piece by piece.
 *
 * @param {Blob} clip
 * @param {Fields} fields
 * @param {{onOpen: () => void, onText: (piece: string) => void, signal: AbortSignal}} watch
 * @returns {Promise<Answer>}
 */
export async function ask(clip, fields, { onOpen, onText, signal }) {
  const streamed = { ...fields, stream: "true", stream_options: '{"include_usage": true}' };
  const { body, contentType } = formOf(clip, streamed);
  const headers = { "content-type": contentType };
  const response = await request(CHAT_URL, { method: "POST", body, headers, signal });
  if (!response.ok || !response.body) throw await errorOf(response);
  const requestId = response.headers.get("x-request-id");
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new ApiError({ code: "not_understood" }, { status: response.status, requestId });
  }
  onOpen();
  /** @type {Answer} */
  const answer = { text: "", finishReason: null, timings: null, usage: null, requestId };
  for await (const chunk of chunksOf(response.body, requestId)) {
    const piece = take(answer, chunk);
    if (piece) onText(piece);
  }
  return answer;
}

/**
 * The form as bytes. FormData would turn the instruction's line feeds into CR LF, and so ask something else.
 *
 * @param {Blob} clip
 * @param {Fields} fields
 */
function formOf(clip, fields) {
  const boundary = `form-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  const head = (/** @type {string} */ name) => `--${boundary}\r\ncontent-disposition: form-data; name="${name}"`;
  const texts = Object.entries(fields).map(([name, value]) => `${head(name)}\r\n\r\n${value}\r\n`);
  const file = [`${head("file")}; filename="clip"\r\n\r\n`, clip, `\r\n--${boundary}--\r\n`];
  return { body: new Blob([...texts, ...file]), contentType: `multipart/form-data; boundary=${boundary}` };
}

/**
 * Note what a chunk says; returns its text.
 *
 * @param {Answer} answer
 * @param {Chunk} chunk
 */
function take(answer, chunk) {
  const choice = chunk.choices[0];
  const piece = choice?.delta.content ?? "";
  answer.text += piece;
  answer.finishReason = choice?.finish_reason ?? answer.finishReason;
  answer.timings = chunk.timings ?? answer.timings;
  answer.usage = chunk.usage ?? answer.usage;
  return piece;
}

/**
 * The chunks of a stream up to its [DONE]. Throws ApiError for an error in it, and for one that just stops.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @param {?string} requestId
 * @returns {AsyncGenerator<Chunk>}
 */
async function* chunksOf(body, requestId) {
  for await (const data of eventsOf(body)) {
    if (data === "[DONE]") return;
    const chunk = chunkOf(data);
    if (!chunk) throw new ApiError({ code: "not_understood" }, { requestId });
    if (chunk.error) throw new ApiError(chunk.error, { requestId });
    yield chunk;
  }
  throw new ApiError({ message: "The connection ended before the answer did.", code: "network" }, { requestId });
}

/**
 * @param {string} data
 * @returns {?Chunk} null for what no server of this kind sends
 */
function chunkOf(data) {
  try {
    const chunk = JSON.parse(data);
    return chunk.error || Array.isArray(chunk.choices) ? chunk : null;
  } catch {
    return null;
  }
}

/**
 * The data of server-sent events. Comments, which keep the connection alive, are left out.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* eventsOf(body) {
  let data = [];
  for await (const line of linesOf(body)) {
    if (line === "") {
      if (data.length) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

/**
 * Lines as they become complete; a piece may end within a line and within a character.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
async function* linesOf(body) {
  // Not every browser can iterate over a stream, so it is read by hand.
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (let piece = await readFrom(reader); !piece.done; piece = await readFrom(reader)) {
      const lines = (rest + decoder.decode(piece.value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) yield line.replace(/\r$/, "");
    }
  } finally {
    reader.cancel().catch(() => {}); // left early: the server may stop
  }
}

/** @param {ReadableStreamDefaultReader<Uint8Array>} reader */
async function readFrom(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError({ message: "The connection to the server was lost.", code: "network" });
  }
}
