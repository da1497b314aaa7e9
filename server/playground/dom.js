// @ts-check
// Small things that every part of the page needs.

/**
 * The element of this id or selector, of the type that the caller expects.
 *
 * @template {Element} T
 * @param {string} selector
 * @param {new () => T} type
 * @param {ParentNode} [within]
 * @returns {T}
 */
export function find(selector, type, within = document) {
  const element = within.querySelector(selector);
  if (!(element instanceof type)) throw new Error(`no ${type.name} at ${selector}`);
  return element;
}

/**
 * Fill a list of facts with terms and values; empty values are left out.
 *
 * @param {Element} list
 * @param {[string, ?string][]} facts
 */
export function showFacts(list, facts) {
  list.replaceChildren(...facts.filter(([, value]) => value).map(([term, value]) => fact(term, value ?? "")));
}

/**
 * @param {string} term
 * @param {string} value
 */
function fact(term, value) {
  const group = document.createElement("div");
  group.append(withText("dt", term), withText("dd", value));
  return group;
}

/**
 * @param {string} tag
 * @param {string} text
 */
function withText(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

/** @param {string} text read out by screen readers, once */
export function announce(text) {
  find("#announcer", HTMLElement).textContent = text;
}

/** @param {number} milliseconds */
export function asDuration(milliseconds) {
  if (milliseconds === 0) return "0 ms";
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

/** @param {number} seconds as m:ss.t */
export function asClock(seconds) {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** @param {number} seconds */
export function asSeconds(seconds) {
  return `${+seconds.toFixed(1)} s`;
}

/** @param {number} bytes */
export function asSize(bytes) {
  return bytes >= 2 ** 20 ? `${+(bytes / 2 ** 20).toFixed(1)} MiB` : `${Math.max(1, Math.round(bytes / 1024))} KiB`;
}
