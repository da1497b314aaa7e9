// @ts-check
// The page: what the server is, the key, and asking.

import { ApiError, apiKey, ask, fetchLoad, fetchModel, fetchState, isAbort, keepApiKey } from "./api.js";
import { clipToAsk, initClipCard, setLimits } from "./clip_card.js";
import { asDuration, asSeconds, asSize, find } from "./dom.js";
import { Exchange, clearHistory } from "./history.js";

/** @typedef {import("./api.js").Fields} Fields */
/** @typedef {import("./api.js").Model} Model */

const REFRESH_MS = 5000;
const SETTINGS = ["max_tokens", "temperature", "seed", "system"];

const prompt = find("#prompt", HTMLTextAreaElement);
const askButton = find("#ask", HTMLButtonElement);
const stopButton = find("#stop", HTMLButtonElement);
const keyForm = find("#key-form", HTMLFormElement);
const keyInput = find("#key", HTMLInputElement);
const status = find("#status", HTMLElement);

const promptHint = find("#prompt-hint", HTMLElement);
const usualHint = promptHint.textContent;

/** @type {?AbortController} */
let running = null;

// What the server is

async function refresh() {
  try {
    showModel(await fetchModel()); // each time: what answers now may be another server
    showLoad(await fetchLoad());
  } catch (error) {
    await showUnknown(error);
  }
}

async function refreshForEver() {
  try {
    if (!document.hidden && keyForm.hidden) await refresh();
  } finally {
    setTimeout(refreshForEver, REFRESH_MS);
  }
}

/** @param {Model} found */
function showModel(found) {
  setLimits(found);
  find("#model-name", HTMLElement).textContent = found.id;
  find("#limits-fact", HTMLElement).hidden = false;
  find("#model-limits", HTMLElement).textContent =
    `${asSeconds(found.max_audio_seconds)} of audio, ${asSize(found.max_upload_bytes)}, ` +
    `${found.max_new_tokens} answer tokens, ${found.max_context_tokens} tokens in all`;
  showNote(found.random_weights ? "Nobody trained this model: its weights are random, and so are its answers." : "");
  if (found.merged_prompt !== null) fixPrompt(found.merged_prompt);
  else if (prompt.readOnly) freePrompt();
}

/** @param {string} text */
function showNote(text) {
  const note = find("#model-note", HTMLElement);
  note.textContent = text;
  note.hidden = !text;
}

/** @param {string} only the one instruction that this server was started for */
function fixPrompt(only) {
  prompt.value = only;
  prompt.readOnly = true;
  find("#presets", HTMLElement).hidden = true;
  promptHint.textContent = "This server answers this one instruction.";
}

function freePrompt() {
  prompt.readOnly = false;
  find("#presets", HTMLElement).hidden = false;
  promptHint.textContent = usualHint;
}

/** @param {import("./api.js").Load} load */
function showLoad(load) {
  showState(load.state);
  find("#load-fact", HTMLElement).hidden = false;
  find("#model-load", HTMLElement).textContent =
    `${load.num_requests_running} running, ${load.num_requests_waiting} waiting, ` +
    `${Math.round(load.kv_cache_usage * 100)} % of the cache in use`;
}

/** @param {string} state */
function showState(state) {
  const shown = find("#model-state", HTMLElement);
  shown.textContent = state;
  shown.dataset.state = state;
}

/** @param {unknown} error */
async function showUnknown(error) {
  if (!(error instanceof ApiError)) throw error;
  find("#load-fact", HTMLElement).hidden = true;
  if (error.status === 401) askForKey();
  if (error.code === "network") return showState("unreachable");
  showState(await fetchState().catch(() => "unreachable"));
}

// The key

function askForKey() {
  find("#key-message", HTMLElement).textContent = apiKey()
    ? "The server does not know this key."
    : "This server asks for a key. It stays in this tab and is sent to this server alone.";
  keyForm.hidden = false;
  find("#key-kept", HTMLElement).hidden = true;
  keyInput.focus();
}

function initKey() {
  showKeyKept();
  keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    takeKey(keyInput.value.trim());
  });
  find("#forget-key", HTMLButtonElement).addEventListener("click", () => takeKey(""));
}

/** @param {string} key */
function takeKey(key) {
  if (/[^\x21-\x7e]/.test(key)) {
    find("#key-message", HTMLElement).textContent = "A key has neither spaces nor letters beyond ASCII.";
    return;
  }
  keepApiKey(key);
  keyInput.value = "";
  keyForm.hidden = true;
  showKeyKept();
  if (key) prompt.focus();
  refresh();
}

function showKeyKept() {
  find("#key-kept", HTMLElement).hidden = apiKey() === "";
}

// Asking

function initAsking() {
  const form = find("#ask-form", HTMLFormElement);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(readFields());
  });
  form.addEventListener("input", ({ target }) => target instanceof Element && target.removeAttribute("aria-invalid"));
  stopButton.addEventListener("click", stop);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  addEventListener("keydown", (event) => {
    // Within an input method it ends the composition alone.
    if (event.key === "Escape" && !event.isComposing && !event.defaultPrevented) stop();
  });
  for (const preset of document.querySelectorAll("[data-prompt]")) preset.addEventListener("click", takePreset);
}

/** @param {Event} event */
function takePreset({ currentTarget }) {
  if (!(currentTarget instanceof HTMLElement)) return;
  prompt.value = currentTarget.dataset.prompt ?? "";
}

/** @returns {Fields} the prompt, and the settings that are filled in */
function readFields() {
  const filled = SETTINGS.map((name) => [name, settingOf(name).value]).filter(([, value]) => value.trim() !== "");
  return { prompt: prompt.value, ...Object.fromEntries(filled) };
}

/** @param {string} name */
function settingOf(name) {
  const field = document.getElementById(name);
  if (field instanceof HTMLInputElement || field instanceof HTMLTextAreaElement) return field;
  throw new Error(`no field ${name}`);
}

function stop() {
  running?.abort();
}

/** @param {Fields} fields */
async function submit(fields) {
  if (running) return void (status.textContent = "One at a time: wait for the answer, or stop it.");
  const clip = clipToAsk();
  if (!clip) return;
  const controller = new AbortController();
  begin(controller);
  const exchange = new Exchange(clip.name, fields, submit);
  try {
    await answer(clip.blob, fields, exchange, controller.signal);
  } catch (error) {
    showFailure(exchange, error);
  } finally {
    end();
  }
}

/**
 * @param {Blob} clip
 * @param {Fields} fields
 * @param {Exchange} exchange
 * @param {AbortSignal} signal
 */
async function answer(clip, fields, exchange, signal) {
  const found = await ask(clip, fields, {
    signal,
    onOpen: () => (status.textContent = "Answering."),
    onText: (piece) => exchange.add(piece),
  });
  exchange.finish(found);
  find("#prompt-label", HTMLElement).textContent = "Next instruction about the same clip";
  status.textContent = found.timings ? `Answered in ${asDuration(found.timings.total_ms)}.` : "Answered.";
}

/**
 * @param {Exchange} exchange
 * @param {unknown} error
 */
function showFailure(exchange, error) {
  status.textContent = isAbort(error) ? "Stopped." : "Not answered.";
  if (isAbort(error)) return exchange.stop();
  if (!(error instanceof ApiError)) throw error;
  exchange.fail(error);
  markField(error.param);
  if (error.status === 401) askForKey();
}

/** @param {?string} param the field at fault, if it is one of the settings */
function markField(param) {
  if (!param || !SETTINGS.includes(param)) return;
  const field = settingOf(param);
  field.setAttribute("aria-invalid", "true");
  find("#settings", HTMLDetailsElement).open = true;
}

/** @param {AbortController} controller */
function begin(controller) {
  running = controller;
  for (const name of SETTINGS) settingOf(name).removeAttribute("aria-invalid");
  // Not `disabled`, which would take the focus away from it.
  askButton.setAttribute("aria-disabled", "true");
  stopButton.hidden = false;
  status.textContent = "Sending the clip and waiting.";
}

function end() {
  running = null;
  askButton.removeAttribute("aria-disabled");
  if (document.activeElement === stopButton) askButton.focus();
  stopButton.hidden = true;
}

function takeNewClip() {
  stop();
  clearHistory();
  status.textContent = "";
  find("#prompt-label", HTMLElement).textContent = "Instruction";
}

initKey();
initAsking();
initClipCard(takeNewClip);
refreshForEver();
