// The line below the bar that grows while a photo is encoded.

import { $ } from "./panels.js";
import { settings } from "./storage.js";

/**
 * The server cannot say how far the encoder is, so that the line goes by how long the last photos
 * took, and slows down near its end.
 */
export class Progress {
  constructor(onTick) {
    this.onTick = onTick;
    this.began = 0;
    this.timer = 0;
  }

  get seconds() {
    return this.began ? (performance.now() - this.began) / 1000 : 0;
  }

  start() {
    this.began = performance.now();
    this.expected = settings.get("encodeSeconds", 2);
    clearInterval(this.timer);
    this.timer = setInterval(() => this.#tick(), 60);
    $("progress").hidden = false;
    this.#tick();
  }

  #tick() {
    const done = 1 - Math.exp((-1.6 * this.seconds) / this.expected);
    $("progress").firstElementChild.style.setProperty("--done", done);
    $("progress").setAttribute("aria-valuenow", Math.round(100 * done));
    this.onTick();
  }

  /** encoded: whether the photo is ready, so that its time tells of the next one. */
  stop(encoded) {
    if (!this.began) return;
    clearInterval(this.timer);
    if (encoded && this.seconds > 0.2) {
      settings.set("encodeSeconds", 0.6 * this.expected + 0.4 * this.seconds);
    }
    this.began = 0;
    $("progress").hidden = true;
    this.onTick();
  }
}
