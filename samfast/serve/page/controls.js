// Buttons, fields and settings of the page.

import { $ } from "./panels.js";
import { settings } from "./storage.js";

export class Controls {
  constructor(app) {
    this.app = app;
  }

  watch() {
    this.#watchButtons();
    this.#watchClassForm();
    this.#watchSettings();
    this.#setInsets();
    addEventListener("resize", () => this.#setInsets());
  }

  #watchButtons() {
    const { app } = this;
    const on = (id, run) => $(id).addEventListener("click", run);
    on("previous", () => app.photos.step(-1));
    on("next", () => app.photos.step(1));
    on("undo", () => app.labels.undo());
    on("redo", () => app.labels.redo());
    on("undo-phone", () => app.labels.undo());
    on("choose", () => app.files.choose());
    on("welcome-choose", () => app.files.choose());
    on("download", () => app.downloads.open());
    on("help", () => this.openHelp());
    on("everything", () => app.everything.toggle());
    on("zoom-in", () => app.view.zoom(1.25));
    on("zoom-out", () => app.view.zoom(1 / 1.25));
    on("zoom-fit", () => app.tools.fit());
    on("done", () => app.tools.finish());
    on("keep-all", () => app.everything.keepAll());
    on("hide-all", () => app.labels.hideAll());
    on("panel-toggle", () => this.openPanel(!$("panel").hasAttribute("data-open")));
    on("panel-close", () => this.openPanel(false));
    on("download-folder", () => app.downloads.saveFolder());
    on("failure-retry", () => app.photos.reopen());
    on("failure-next", () => app.photos.step(1));
    on("banner-retry", () => app.tryAgain());
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => app.tools.choose(button.dataset.tool));
    }
    // After a click with the mouse the keys belong to the photo again.
    const floating = ".tools button, .bar button, .zoom button, .finish button";
    for (const button of document.querySelectorAll(floating)) {
      button.addEventListener("click", (event) => {
        if (event.detail > 0) $("canvas").focus({ preventScroll: true });
      });
    }
    for (const button of document.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => app.downloads.save(button.dataset.download));
    }
    // A photo outside the panel ends a look into it on a phone.
    $("canvas").addEventListener("pointerdown", () => this.openPanel(false));
  }

  #watchClassForm() {
    $("class-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.app.labels.addClass($("class-name").value);
      $("class-name").value = "";
    });
    $("class-name").addEventListener("keydown", (event) => {
      if (event.key === "Escape") $("canvas").focus({ preventScroll: true });
    });
  }

  #watchSettings() {
    $("opacity").value = settings.get("opacity", 40);
    $("opacity").addEventListener("input", () => this.#showOpacity());
    this.#showOpacity();
    for (const [id, otherwise] of [["by-object", false], ["one-click", false], ["preview", true]]) {
      $(id).checked = settings.get(id, otherwise);
      $(id).addEventListener("change", () => {
        settings.set(id, $(id).checked);
        this.app.clicks.preview();
        this.app.render();
      });
    }
  }

  /** Keep the photo clear of what floats above it. */
  #setInsets() {
    this.app.view.insets = innerWidth <= 800
      ? { top: 12, right: 12, bottom: 122, left: 12 }
      : { top: 22, right: 22, bottom: 62, left: 96 };
    if (this.app.view.fitted) this.app.view.fit();
  }

  changeOpacity(step) {
    const value = Math.max(0, Math.min(100, Number($("opacity").value) + step));
    $("opacity").value = value;
    this.#showOpacity();
  }

  #showOpacity() {
    $("opacity-value").textContent = `${$("opacity").value} %`;
    settings.set("opacity", Number($("opacity").value));
    this.app.view.invalidate();
  }

  openPanel(open) {
    $("panel").toggleAttribute("data-open", open);
    $("panel-toggle").setAttribute("aria-expanded", String(open));
  }

  openHelp() {
    $("help-dialog").showModal();
  }
}
