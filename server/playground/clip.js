// @ts-check
// A clip in the browser: its samples for the picture, its playback, and recording it.

const PREVIEW_RATE = 16000;
const LONGEST_DRAWN_S = 900; // decoded it would take 60 MB
const METADATA_MS = 3000;
const BAR_WIDTH = 3; // CSS pixels, the gap included
const RECORDING_TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
/** @type {{[type: string]: string}} */
const ENDINGS = { "audio/webm": "webm", "audio/mp4": "m4a", "audio/ogg": "ogg" };

/** @typedef {{blob: Blob, name: string, samples: ?Float32Array, seconds: ?number}} Clip */

/**
 * A file with what can be seen of it. samples are null where the browser cannot decode it, and of a long one;
 * seconds where it cannot play it either.
 * Throws if its bytes cannot be read.
 *
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Clip>}
 */
export async function readClip(file, name) {
  const bytes = await file.arrayBuffer();
  // Kept in memory, for the file may change or go before it is asked about again.
  const blob = new Blob([bytes], { type: file.type });
  const seconds = await lengthOf(blob);
  if (seconds !== null && seconds > LONGEST_DRAWN_S) return { blob, name, samples: null, seconds };
  try {
    // An offline context decodes without being allowed to play, and at a rate that keeps long files small.
    const context = new OfflineAudioContext(1, 1, PREVIEW_RATE);
    const decoded = await context.decodeAudioData(bytes);
    return { blob, name, samples: decoded.getChannelData(0), seconds: decoded.duration };
  } catch {
    return { blob, name, samples: null, seconds };
  }
}

/**
 * @param {Blob} blob
 * @returns {Promise<?number>} seconds by the player; null if it cannot tell, as of recordings
 */
async function lengthOf(blob) {
  const player = new Audio();
  player.preload = "metadata";
  player.src = URL.createObjectURL(blob);
  await new Promise((resolve) => {
    for (const kind of ["loadedmetadata", "error"]) player.addEventListener(kind, resolve, { once: true });
    setTimeout(resolve, METADATA_MS);
  });
  URL.revokeObjectURL(player.src);
  return Number.isFinite(player.duration) ? player.duration : null;
}

/**
 * The loudest sample of each of `count` equal parts.
 *
 * @param {Float32Array} samples
 * @param {number} count
 */
export function peaksOf(samples, count) {
  return Array.from({ length: count }, (_, index) => {
    const start = Math.floor((index * samples.length) / count);
    const end = Math.floor(((index + 1) * samples.length) / count);
    let peak = 0;
    for (let at = start; at < end; at++) peak = Math.max(peak, Math.abs(samples[at]));
    return peak;
  });
}

/**
 * Draw the clip; the part before `progress` (0 to 1) in the accent colour.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {?Float32Array} samples
 * @param {number} progress
 */
export function drawClip(canvas, samples, progress) {
  const count = Math.max(1, Math.floor(canvas.clientWidth / BAR_WIDTH));
  const peaks = samples ? peaksOf(samples, count) : new Array(count).fill(0);
  const loudest = Math.max(...peaks, 1e-4); // quiet clips fill the picture too
  drawBars(canvas, peaks.map((peak) => peak / loudest), progress * count);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number[]} heights 0 to 1
 * @param {number} numPlayed bars in the accent colour
 */
export function drawBars(canvas, heights, numPlayed) {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { clientWidth: width, clientHeight: height } = canvas;
  const style = getComputedStyle(canvas);
  const [played, rest] = [style.getPropertyValue("--accent"), style.getPropertyValue("--wave")];
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  context.scale(devicePixelRatio, devicePixelRatio);
  heights.forEach((share, index) => {
    const tall = Math.max(2, share * (height - 4));
    context.fillStyle = index < numPlayed ? played : rest;
    context.fillRect(index * BAR_WIDTH, (height - tall) / 2, BAR_WIDTH - 1, tall);
  });
}

/** Why recording cannot begin, in words for the user. */
export class RecordingError extends Error {}

/** @type {{[name: string]: string}} */
const REASONS = {
  NotAllowedError: "The browser refused the microphone. Allow it for this page, then try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone cannot be opened; another program may be using it.",
};
const INSECURE =
  "Browsers give the microphone to secure pages alone: open this one over HTTPS or at localhost.";

/** @returns {Promise<MediaStream>} Throws RecordingError. */
async function openMicrophone() {
  if (!isSecureContext) {
    throw new RecordingError(INSECURE);
  }
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    throw new RecordingError("This browser cannot record. Choose a file instead.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const name = error instanceof Error ? error.name : "";
    throw new RecordingError(REASONS[name] ?? "The microphone cannot be opened.");
  }
}

/** A running recording. */
export class Recording {
  /** @param {MediaStream} stream */
  constructor(stream) {
    const mimeType = RECORDING_TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this._stream = stream;
    this._recorder = new MediaRecorder(stream, { mimeType });
    this._startedAt = performance.now();
    this._context = new AudioContext();
    this._analyser = this._context.createAnalyser();
    this._context.createMediaStreamSource(stream).connect(this._analyser);
    /** @type {Blob[]} */
    this._pieces = [];
    this._recorder.addEventListener("dataavailable", (event) => this._pieces.push(event.data));
    /** Resolves when nothing more is recorded, whoever ended it. */
    this.ended = new Promise((resolve) => this._recorder.addEventListener("stop", resolve, { once: true }));
    this._recorder.start();
  }

  /** Ask for the microphone and begin. Throws RecordingError. */
  static async start() {
    const stream = await openMicrophone();
    try {
      return new Recording(stream);
    } catch {
      for (const track of stream.getTracks()) track.stop();
      throw new RecordingError("This browser cannot record from the microphone. Choose a file instead.");
    }
  }

  get seconds() {
    return (performance.now() - this._startedAt) / 1000;
  }

  /** @returns {number} how loud it is now, 0 to 1 */
  get level() {
    const samples = new Float32Array(this._analyser.fftSize);
    this._analyser.getFloatTimeDomainData(samples);
    return Math.min(1, peaksOf(samples, 1)[0]);
  }

  get name() {
    return `recording.${ENDINGS[this._type] ?? "bin"}`;
  }

  get _type() {
    return this._recorder.mimeType.split(";")[0];
  }

  /**
   * End it and give the microphone back.
   *
   * @returns {Promise<Blob>} what was recorded
   */
  async stop() {
    if (this._recorder.state !== "inactive") this._recorder.stop();
    await this.ended;
    for (const track of this._stream.getTracks()) track.stop();
    await this._context.close();
    return new Blob(this._pieces, { type: this._type });
  }
}
