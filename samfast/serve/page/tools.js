// The tool in hand, the crosshair that keys move, and the part of the photo in sight.

import { $, announce } from "./panels.js";

export class Tools {
  constructor(app) {
    this.app = app;
    this.chosen = "add";
    this.cross = null; // the pixel [x, y] of the crosshair
    this.boxStart = null; // where the crosshair began a box
  }

  /** Forget the photo that is left. */
  forget() {
    this.cross = null;
    this.boxStart = null;
  }

  choose(tool) {
    this.chosen = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    this.app.gestures.refresh();
    this.app.clicks.removing = tool === "remove";
    this.app.clicks.preview();
    this.app.status.showHint();
  }

  /** At the keyboard's crosshair a tool acts at once; otherwise it is chosen for the pointer. */
  use(tool) {
    const { app } = this;
    if (!this.cross) {
      this.choose(tool);
    } else if (tool === "box") {
      if (this.boxStart) {
        const box = this.#boxTo(this.cross);
        this.boxStart = null;
        app.clicks.drawBox(box, { done: true });
      } else {
        this.boxStart = this.cross;
        app.clicks.box = this.#boxTo(this.cross);
        app.clicks.preview();
      }
    } else {
      app.clicks.click(this.cross, { remove: tool === "remove", select: false });
    }
  }

  finish() {
    const { app } = this;
    if (app.everything.on) {
      app.everything.leave();
      app.clicks.hover = null;
    } else app.work?.history.activate(null);
    app.render();
    app.clicks.preview();
  }

  escape() {
    const { app } = this;
    if (this.boxStart || app.clicks.box) {
      this.boxStart = null;
      app.clicks.box = null;
    } else if ($("panel").hasAttribute("data-open")) app.controls.openPanel(false);
    else if (app.everything.on || app.work?.history.active) this.finish();
    else if (this.cross) this.cross = null;
    else if (this.chosen !== "add") this.choose("add");
    app.clicks.preview();
    app.render();
  }

  /** Whether keys belong to the photo, not to a button or list. */
  get atCanvas() {
    return [$("canvas"), document.body].includes(document.activeElement);
  }

  #boxTo([x, y]) {
    const [startX, startY] = this.boxStart;
    return [
      Math.min(startX, x), Math.min(startY, y), Math.max(startX, x) + 1, Math.max(startY, y) + 1,
    ];
  }

  moveCross(x, y, distance) {
    const { app } = this;
    if (!app.photo?.picture) return;
    const { width, height } = app.photo;
    const start = this.cross ?? app.clicks.pointer ?? [width >> 1, height >> 1];
    const step = this.cross ? Math.max(1, Math.round(distance / app.view.scale)) : 0;
    this.cross = [
      Math.max(0, Math.min(width - 1, start[0] + x * step)),
      Math.max(0, Math.min(height - 1, start[1] + y * step)),
    ];
    if (this.boxStart) app.clicks.box = this.#boxTo(this.cross);
    app.view.reveal(this.cross);
    announce(`${this.cross[0]}, ${this.cross[1]}`);
    app.clicks.preview();
    app.view.invalidate();
    app.status.showHint();
  }

  zoom(factor) {
    const place = $("canvas").getBoundingClientRect();
    const spot = this.cross ?? this.app.clicks.pointer;
    if (spot) {
      const [x, y] = this.app.view.toWindow(spot);
      this.app.view.zoom(factor, x - place.left, y - place.top);
    } else this.app.view.zoom(factor);
    this.app.clicks.followMouse();
  }

  fit() {
    this.app.view.fit();
    this.app.clicks.followMouse();
  }

  pan(x, y) {
    this.app.view.pan(-80 * x, -80 * y);
    this.app.clicks.followMouse();
  }
}
