// What stands around the photo: lists, buttons, hints, and whether the work is saved.

import { $, showClasses, showObjects } from "./panels.js";

const touch = matchMedia("(pointer: coarse)");

export class Status {
  constructor(app) {
    this.app = app;
    this.hintShown = null;
  }

  show() {
    const { app } = this;
    const { photos, labels, everything } = app;
    const history = app.work?.history ?? { objects: [], active: null, past: [], future: [] };
    showClasses(app.classes, (history.active
      ? app.classes.get(history.active.classKey) : app.classes.current)?.key, labels);
    showObjects({
      objects: history.objects,
      active: history.active,
      classes: app.classes,
      hidden: labels.hidden,
      colourOf: (object) => labels.colourOf(object),
      labels,
    });
    $("photo-name").textContent = app.photo?.name ?? "";
    $("photo-count").textContent = photos.index >= 0
      ? `${photos.index + 1} of ${photos.all.length}` : "";
    $("photo-nav").hidden = !app.photo;
    $("previous").disabled = photos.index <= 0;
    $("next").disabled = photos.index < 0 || photos.index + 1 >= photos.all.length;
    for (const id of ["undo", "undo-phone"]) $(id).disabled = !history.past.length;
    $("redo").disabled = !history.future.length;
    $("download").disabled = !app.photo?.ready;
    $("everything").setAttribute("aria-pressed", String(everything.on));
    $("stage").toggleAttribute("data-photo", Boolean(app.photo));
    $("stage").toggleAttribute("data-everything", everything.on);
    $("finish").hidden = !(history.active || everything.on);
    $("keep-all").hidden = !everything.on || !everything.candidates.length;
    $("hide-all").setAttribute("aria-pressed", String(labels.allHidden));
    $("hide-all").querySelector("use").setAttribute(
      "href", labels.allHidden ? "#i-eye-off" : "#i-eye",
    );
    const aside = app.work?.keptAside ?? 0;
    $("kept-aside").hidden = !aside;
    $("kept-aside").textContent = `${aside === 1 ? "One annotation" : `${aside} annotations`} of ` +
      "this photo cannot be drawn here (boxes without a mask, crowds). They are kept in the file.";
    this.showState();
    this.showHint();
    app.view.invalidate();
  }

  /** Whether the work is saved, and what is wrong if not. */
  showState() {
    const { state, name, problem: unsaved } = this.app.works.worst;
    const words = {
      refused: "Not saved", offline: "Not saved yet", saving: "Saving…", dirty: "Saving…",
      clean: "Saved", none: "",
    };
    $("save-state").dataset.state = state;
    if ($("save-state").textContent !== words[state]) {
      $("save-state").textContent = words[state];
    }
    const problem = unsaved ?? this.app.patience.lost;
    const text = problem && (state === "refused"
      ? `${name} is not saved: ${problem} Your work is kept in this browser.`
      : `${problem} Your work is kept in this browser, and this page tries again by itself.`);
    $("banner").hidden = !problem;
    if (problem && $("banner-text").textContent !== text) $("banner-text").textContent = text;
  }

  showZoom() {
    $("zoom-fit").textContent = `${Math.round(100 * this.app.view.scale)} %`;
  }

  /** Say below the photo what can be done now. */
  showHint() {
    const hint = this.#hintText();
    if (this.hintShown === hint) return;
    this.hintShown = hint;
    // Words in square brackets are keys.
    $("hint").replaceChildren(...hint.split(/\[|\](?=[^\]]*)/).map((part, index) =>
      (index % 2 ? Object.assign(document.createElement("kbd"), { textContent: part }) : part)));
  }

  #hintText() {
    const { app } = this;
    if (!app.photo || !$("failure").hidden) return "";
    if (!app.photo.ready) {
      const seconds = app.progress.seconds;
      return `Preparing the photo … ${seconds.toFixed(1)} s${app.photo.picture
        ? ". You can click already." : ""}`;
    }
    if (app.everything.searching) {
      return `Looking for everything … ${Math.round(100 * app.everything.share)} %`;
    }
    const fingers = touch.matches;
    if (app.everything.on) {
      return fingers ? "Tap what you want to keep"
        : "Click what you want to keep · [Shift E] keeps all · [Esc] ends";
    }
    if (app.tools.boxStart) return "Arrows stretch the box · [B] ends it · [Esc] drops it";
    if (app.tools.cross) return "Arrows move · [A] adds · [R] takes away · [B] begins a box";
    if (app.tools.chosen === "hand") return "Drag moves the photo";
    if (app.tools.chosen === "box") return "Drag a box around an object";
    if (app.tools.chosen === "remove") {
      return `${fingers ? "Tap" : "Click"} what does not belong to the object`;
    }
    if (app.work?.history.active) {
      return fingers ? "Tap adds · long press takes away · Done ends"
        : "Click adds · [Shift] click takes away · [Enter] ends";
    }
    return fingers ? "Tap an object"
      : "Click an object or drag a box · [E] outlines everything · [?] help";
  }
}
