// @ts-check
// The card of the clip: chosen, dropped, an example or recorded; drawn and played.

import { isAbort } from "./api.js";
import { Recording, RecordingError, drawBars, drawClip, readClip } from "./clip.js";
import { asClock, asSeconds, asSize, find } from "./dom.js";

/** @typedef {import("./clip.js").Clip} Clip */
/** @typedef {import("./api.js").Model} Model */

const FALLBACK_LIMIT_S = 120;
const LEVEL_EVERY_MS = 80;
const MARGIN_S = 1.5; // the encoder adds some at its edges, and in a hidden tab timers come once a second

const card = find("#clip-card", HTMLElement);
const fileInput = find("#file", HTMLInputElement);
const recordButton = find("#record", HTMLButtonElement);
const playButton = find("#play", HTMLButtonElement);
const position = find("#position", HTMLInputElement);
const canvas = find("#waveform", HTMLCanvasElement);
const player = find("#player", HTMLElement);
const playback = find("#playback", HTMLElement);
const message = find("#clip-message", HTMLElement);
const saveLink = find("#save", HTMLAnchorElement);
const audio = new Audio();
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @type {?Clip} */
let clip = null;
/** @type {?Model} */
let limits = null;
/** @type {?Recording} */
let recording = null;
let numChoices = 0;
let isReading = false;

/** @returns {?Clip} the clip to ask about; null, and the user told why, if there is none that the server could take */
export function clipToAsk() {
  const hindrance = recording
    ? "Stop the recording first."
    : isReading
      ? "The clip is still being read."
      : clip
        ? sizeWarningOf(clip)
        : "Choose, drop or record a clip first.";
  if (hindrance) sayOfClip(hindrance);
  return hindrance ? null : clip;
}

/** @param {Model} model whose limits clips are held against */
export function setLimits(model) {
  limits = model;
  const formats = model.formats.map((name) => name.toUpperCase()).join(", ");
  const most = `${asSeconds(model.max_audio_seconds)} and ${asSize(model.max_upload_bytes)}`;
  find("#clip-hint", HTMLElement).textContent = `Or drop a file here: ${formats}, up to ${most}.`;
}

/** @param {string} text */
function sayOfClip(text) {
  message.textContent = text;
}

/** @param {(clip: Clip) => void} onClip called whenever there is another clip */
export function initClipCard(onClip) {
  /** @type {Take} */
  const take = (source, name) => takeClip(source, name, onClip);
  fileInput.addEventListener("change", () => takeChosen(take));
  for (const button of card.querySelectorAll("[data-clip]")) {
    button.addEventListener("click", () => takeExample(button.getAttribute("data-clip") ?? "", take));
  }
  recordButton.addEventListener("click", () => (recording ? stopRecording(take) : startRecording(take)));
  initDrop(take);
  initPlayer();
}

/** @typedef {Blob | Promise<Blob>} Source */
/** @typedef {(source: Source, name: string) => Promise<void>} Take */

/** @param {Take} take */
function takeChosen(take) {
  const file = fileInput.files?.[0];
  fileInput.value = ""; // so that the same file can be chosen again
  if (file) take(file, file.name);
}

/**
 * @param {string} path
 * @param {Take} take
 */
function takeExample(path, take) {
  return take(fetchExample(path), path.split("/").at(-1) ?? "example");
}

/** @param {string} path */
async function fetchExample(path) {
  const response = await fetch(new URL(path, document.baseURI));
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.blob();
}

/** @param {Take} take */
function initDrop(take) {
  // On the whole page, for a file dropped beside the card would make the browser leave. Text may go where it likes.
  const holdsFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    card.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) card.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    card.classList.remove("dropping");
    takeDropped([...(event.dataTransfer?.files ?? [])], take);
  });
}

/**
 * @param {File[]} files
 * @param {Take} take
 */
async function takeDropped([file, ...others], take) {
  if (!file) return sayOfClip("No file was dropped.");
  await take(file, file.name);
  if (others.length && clip?.name === file.name) sayOfClip(`One clip at a time: this is ${file.name}.`);
}

/**
 * The last choice wins, however long each takes to come. Until it is read, what was there stays.
 *
 * @param {Source} source
 * @param {string} name
 * @param {(clip: Clip) => void} onClip
 */
async function takeClip(source, name, onClip) {
  const choice = ++numChoices;
  isReading = true;
  sayOfClip("Reading the clip.");
  const read = await readSource(source, name);
  if (choice !== numChoices) return;
  isReading = false;
  if (!read) return keepWhatThereIs();
  endRecording()?.stop(); // whoever chooses another clip does not want it
  clip = read;
  showClip(read);
  onClip(read);
}

function keepWhatThereIs() {
  if (recording) return sayOfClip("The clip cannot be read. The recording goes on.");
  if (clip) showClip(clip);
  else player.hidden = playback.hidden = true;
  sayOfClip("The clip cannot be read.");
}

/**
 * @param {Source} source
 * @param {string} name
 * @returns {Promise<?Clip>} null if it is gone, or a folder
 */
async function readSource(source, name) {
  try {
    const blob = await source;
    return sizeWarningOf({ blob }) ? { blob, name, samples: null, seconds: null } : await readClip(blob, name);
  } catch {
    return null;
  }
}

/** @param {Clip} shown */
function showClip(shown) {
  audio.pause();
  URL.revokeObjectURL(audio.src);
  audio.src = URL.createObjectURL(shown.blob);
  saveLink.href = audio.src;
  saveLink.download = shown.name;
  player.hidden = false;
  const length = shown.seconds === null ? "" : `, ${asSeconds(shown.seconds)}`;
  find("#clip-name", HTMLElement).textContent = `${shown.name}${length}, ${asSize(shown.blob.size)}`;
  canvas.setAttribute("aria-label", `Waveform of ${shown.name}${length}`);
  position.max = String(shown.seconds ?? 0);
  position.disabled = playButton.disabled = false;
  playback.hidden = shown.seconds === null;
  sayOfClip(warningOf(shown));
  showPlaying(); // a new source drops the event of the pause
  showPosition(0);
}

/** @param {{blob: Blob}} shown */
function sizeWarningOf({ blob }) {
  if (!limits || blob.size <= limits.max_upload_bytes) return "";
  return `More than the ${asSize(limits.max_upload_bytes)} that this server takes.`;
}

/** @param {Clip} shown what is likely to be refused; the server decides */
function warningOf({ blob, seconds }) {
  const tooLarge = sizeWarningOf({ blob });
  if (tooLarge) return tooLarge;
  if (seconds === null) return "This browser cannot show or play the file. The server decides for itself.";
  if (limits && seconds > limits.max_audio_seconds) {
    return `Longer than the ${asSeconds(limits.max_audio_seconds)} that this server takes.`;
  }
  return "";
}

function initPlayer() {
  playButton.addEventListener("click", () => (audio.paused ? play() : audio.pause()));
  for (const kind of ["play", "pause", "ended"]) audio.addEventListener(kind, showPlaying);
  position.addEventListener("input", () => seek(Number(position.value)));
  canvas.addEventListener("click", (event) => {
    if (clip?.seconds) seek((event.offsetX / canvas.clientWidth) * clip.seconds);
  });
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  audio.addEventListener("timeupdate", redraw);
}

async function play() {
  try {
    await audio.play();
  } catch (error) {
    if (!isAbort(error)) sayOfClip("This browser cannot play the clip."); // an abort: paused, or another clip came
  }
}

/** @param {number} seconds */
function seek(seconds) {
  audio.currentTime = seconds;
  showPosition(seconds);
}

function showPlaying() {
  playButton.textContent = audio.paused ? "Play" : "Pause";
  redraw();
  if (!audio.paused && !calm.matches) requestAnimationFrame(followPlayback);
}

/** Smoother than timeupdate, which comes four times a second. */
function followPlayback() {
  redraw();
  if (!audio.paused) requestAnimationFrame(followPlayback);
}

function redraw() {
  if (!recording && clip) showPosition(audio.currentTime);
}

/** @param {number} seconds */
function showPosition(seconds) {
  const whole = clip?.seconds ?? 0;
  position.value = String(seconds);
  position.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${whole.toFixed(1)} seconds`);
  find("#time", HTMLElement).textContent = `${asClock(seconds)} / ${asClock(whole)}`;
  drawClip(canvas, clip?.samples ?? null, whole ? seconds / whole : 0);
}

/** @param {Take} take */
async function startRecording(take) {
  recordButton.disabled = true; // until the user has answered the browser's question
  try {
    sayOfClip("Waiting for the microphone.");
    recording = await Recording.start();
    numChoices++; // a clip that is still on its way comes too late
    isReading = false;
    audio.pause();
    recordButton.textContent = "Stop recording";
    recordButton.classList.add("recording");
    player.hidden = playback.hidden = false;
    saveLink.removeAttribute("href");
    playButton.disabled = position.disabled = true;
    sayOfClip("Recording.");
    showRecording(recording, [], take);
    endWithMicrophone(recording, take);
  } catch (error) {
    if (!(error instanceof RecordingError)) throw error;
    sayOfClip(error.message);
  } finally {
    recordButton.disabled = false;
    if ([null, document.body, recordButton].includes(document.activeElement)) recordButton.focus();
  }
}

/**
 * Keep what was heard of a microphone that is unplugged or taken away.
 *
 * @param {Recording} running
 * @param {Take} take
 */
async function endWithMicrophone(running, take) {
  await running.ended;
  if (recording !== running) return;
  await stopRecording(take);
  const isShown = clip?.name === running.name && !isReading && !message.textContent;
  if (isShown) sayOfClip("The microphone went away. This is what it heard.");
}

/**
 * Draw the level over and over; stop at the longest clip that the server takes.
 *
 * @param {Recording} running
 * @param {number[]} levels
 * @param {Take} take
 */
function showRecording(running, levels, take) {
  if (recording !== running) return;
  const limit = limits?.max_audio_seconds ?? FALLBACK_LIMIT_S;
  if (running.seconds > limit - MARGIN_S) return void stopRecording(take);
  find("#clip-name", HTMLElement).textContent = `Recording, at most ${Math.floor(limit)} s`;
  find("#time", HTMLElement).textContent = asClock(running.seconds);
  levels.push(running.level);
  if (!calm.matches) drawBars(canvas, levels.slice(-Math.floor(canvas.clientWidth / 3)), levels.length);
  setTimeout(showRecording, LEVEL_EVERY_MS, running, levels, take);
}

/** @param {Take} take */
async function stopRecording(take) {
  const ended = endRecording();
  if (!ended) return;
  await take(ended.stop(), ended.name);
}

/** @returns {?Recording} the one that ran, still to be stopped */
function endRecording() {
  const ended = recording;
  recording = null;
  recordButton.textContent = "Record";
  recordButton.classList.remove("recording");
  return ended;
}
