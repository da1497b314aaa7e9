// @ts-check
// One question and its answer on the page, from the first letter to the timings.

import { CHAT_URL, apiKey } from "./api.js";
import { curlCommand, pythonProgram } from "./commands.js";
import { announce, asDuration, find, showFacts } from "./dom.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").ApiError} ApiError */
/** @typedef {import("./api.js").Fields} Fields */

const list = find("#history", HTMLOListElement);
const template = find("#exchange", HTMLTemplateElement);
const hint = find("#no-answers", HTMLElement);
const COPIED_MS = 2000;
const NO_INSTRUCTION = "(no instruction: the question is in the audio)";

/** Another clip: its questions begin anew. */
export function clearHistory() {
  list.replaceChildren();
  hint.hidden = false;
}

/** One entry of the history, newest first. */
export class Exchange {
  /**
   * @param {string} fileName
   * @param {Fields} fields
   * @param {(fields: Fields) => void} onAgain
   */
  constructor(fileName, fields, onAgain) {
    const entry = template.content.cloneNode(true);
    if (!(entry instanceof DocumentFragment)) throw new Error("no template");
    this._item = find("li", HTMLLIElement, entry);
    this._answer = find(".answer", HTMLElement, entry);
    find(".question", HTMLElement, entry).textContent = fields.prompt || NO_INSTRUCTION;
    find(".again", HTMLButtonElement, entry).addEventListener("click", () => onAgain(fields));
    this._showCommands(fileName, fields);
    list.prepend(entry);
    hint.hidden = true;
    this._item.scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  }

  /** @param {string} piece */
  add(piece) {
    this._answer.append(piece); // append makes a text node of a string
  }

  /** @param {Answer} answer */
  finish(answer) {
    this._end();
    if (!answer.text) this._say("The model answered with nothing.");
    if (answer.finishReason === "length") this._say("Cut at the longest answer allowed.");
    this._showNumbers(answer);
    announce(`Answer: ${answer.text || "nothing"}`);
  }

  /** The user stopped it; what came stays. */
  stop() {
    this._end();
    this._say("Stopped.");
  }

  /** @param {ApiError} error */
  fail(error) {
    this._end();
    const box = find(".error", HTMLElement, this._item);
    box.hidden = false;
    find(".error-message", HTMLElement, box).textContent = error.message;
    showFacts(find(".error-facts", HTMLElement, box), [
      ["Status", error.status && String(error.status)],
      ["Code", error.code],
      ["Parameter", error.param],
      ["Request", error.requestId],
      ["Try again in", error.retryAfter && `${error.retryAfter} s`],
    ]);
  }

  _end() {
    this._answer.removeAttribute("aria-busy");
  }

  /** @param {string} text */
  _say(text) {
    const remark = document.createElement("span");
    remark.className = "remark";
    remark.textContent = text;
    this._answer.append(" ", remark);
  }

  /** @param {Answer} answer */
  _showNumbers({ timings, usage, requestId }) {
    const numbers = find(".timings", HTMLElement, this._item);
    numbers.hidden = false;
    showFacts(numbers, [
      ["Queue", timings && asDuration(timings.queue_ms)],
      ["Decode", timings && asDuration(timings.decode_ms)],
      ["Encode", timings && asDuration(timings.encode_ms)],
      ["First token", timings && asDuration(timings.ttft_ms)],
      ["Total", timings && asDuration(timings.total_ms)],
      ["Prompt", usage && `${usage.prompt_tokens} tokens`],
      ["Cached", usage && `${usage.prompt_tokens_details.cached_tokens} tokens`],
      ["Answer", usage && `${usage.completion_tokens} tokens`],
      ["Request", requestId],
    ]);
    this._explainCaches(timings?.encode_ms === 0, (usage?.prompt_tokens_details.cached_tokens ?? 0) > 0);
  }

  /**
   * @param {boolean} heardBefore
   * @param {boolean} readBefore
   */
  _explainCaches(heardBefore, readBefore) {
    const note = find(".cache-note", HTMLElement, this._item);
    note.hidden = !heardBefore && !readBefore;
    const clip = "The clip was known: it was not encoded again.";
    const prompt = "This instruction was known: a part of the prompt came from the cache.";
    note.textContent = [heardBefore && clip, readBefore && prompt].filter(Boolean).join(" ");
  }

  /**
   * @param {string} fileName
   * @param {Fields} fields
   */
  _showCommands(fileName, fields) {
    const withKey = apiKey() !== "";
    const key = withKey ? ` and WAVLLM_KEY holds the key` : "";
    find(".place", HTMLElement, this._item).textContent = `Run it where ${fileName} lies${key}.`;
    this._showCommand("curl", curlCommand(CHAT_URL, fileName, fields, withKey));
    this._showCommand("python", pythonProgram(CHAT_URL, fileName, fields, withKey));
  }

  /**
   * @param {string} name
   * @param {string} text
   */
  _showCommand(name, text) {
    const shown = find(`[data-command="${name}"]`, HTMLPreElement, this._item);
    const button = find(`[data-copy="${name}"]`, HTMLButtonElement, this._item);
    shown.textContent = text;
    button.addEventListener("click", () => copy(shown, button));
  }
}

/**
 * Copy; where the page may not, select the text so that one key does.
 *
 * @param {HTMLElement} shown
 * @param {HTMLButtonElement} button
 */
async function copy(shown, button) {
  try {
    await navigator.clipboard.writeText(shown.textContent ?? "");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
    announce("Copied.");
  } catch {
    getSelection()?.selectAllChildren(shown);
    button.textContent = "Selected";
    announce("The text is selected; copy it with the keyboard.");
  }
}
