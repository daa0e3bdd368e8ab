// The page of large images: joins the image on the canvas, the pointer, the server and the list.

import { Api } from "./api.js";
import { watchPointer } from "./gestures.js";
import { $, askToken, toast } from "./panels.js";
import { SceneTiles } from "./scene_tiles.js";
import { SceneView, colourOf } from "./scene_view.js";
import { SceneWork, geojsonOf } from "./scene_work.js";

class SceneApi extends Api {
  async scenes() {
    return (await this.json("v1/scenes")).scenes;
  }

  info(path) {
    return this.json(`v1/scenes/info?${new URLSearchParams({ path })}`);
  }

  async tile(path, level, column, row, signal) {
    const place = new URLSearchParams({ path, level, column, row });
    return (await this.request(`v1/scenes/tile?${place}`, { signal })).blob();
  }

  /** {window, masks} of one object. */
  async predict(path, { points, labels, box, zoom, window, mask }, multimask) {
    const object = { points, labels };
    if (box) object.box = box;
    if (window) Object.assign(object, { window, mask });
    const body = { path, objects: [object], multimask, zoom };
    return (await this.json("v1/scenes/predict", { method: "POST", body })).objects[0];
  }
}

class ScenePage {
  constructor() {
    this.api = new SceneApi(askToken);
    this.view = new SceneView($("canvas"), () => this.overlay());
    this.view.onFrame = () => this.showZoom();
    this.tool = "add";
    this.info = null;
    this.work = null;
    this.drawn = null; // a box while it is drawn
    this.pointer = watchPointer(this.view, () => this.tool, {
      hover: () => {},
      click: ([x, y], { remove }) => {
        this.prompt({ point: [x + 0.5, y + 0.5], label: remove ? 0 : 1 });
      },
      box: (box, { done }) => this.drawBox(box, done),
      held: () => {},
    });
    this.wire();
  }

  async start() {
    try {
      this.scenes = await this.api.scenes();
    } catch (error) {
      this.fail(error.message);
      return;
    }
    const named = decodeURIComponent(location.hash.slice(1));
    const paths = this.scenes.map(({ path }) => path);
    if (named && !paths.includes(named)) paths.unshift(named);
    $("scenes").replaceChildren(...paths.map((path) => new Option(path, path)));
    if (!paths.length) {
      this.fail("There are no large images below the server's root.");
      return;
    }
    await this.open(named || paths[0]);
  }

  async open(path) {
    $("scenes").value = path;
    $("failure").hidden = true;
    this.info = null;
    this.work = null;
    this.view.show(null);
    this.render();
    try {
      const info = await this.api.info(path);
      if ($("scenes").value !== path) return; // another one was chosen meanwhile
      this.info = info;
    } catch (error) {
      this.fail(error.message);
      return;
    }
    history.replaceState(null, "", `#${encodeURIComponent(path)}`);
    this.work = new SceneWork(
      (prompts, multimask) => this.api.predict(path, prompts, multimask), () => this.render(),
    );
    const request = (...tile) => this.api.tile(path, ...tile);
    this.view.show(new SceneTiles(request, this.info, () => this.view.invalidate()));
    const { width, height } = this.info;
    $("canvas").setAttribute("aria-label", `${path}, ${width} by ${height} pixels`);
    $("stage").dataset.photo = path;
    $("notes").textContent = this.info.notes.join(". ");
    this.render();
  }

  async prompt(what) {
    if (!this.work) return;
    try {
      await this.work.prompt({ ...what, zoom: this.view.modelZoom });
    } catch (error) {
      this.work.last = Promise.resolve();
      toast(error.message, "bad");
    }
  }

  drawBox(box, done) {
    this.drawn = box && [
      Math.min(box[0], box[2]), Math.min(box[1], box[3]),
      Math.max(box[0], box[2]), Math.max(box[1], box[3]),
    ];
    if (done) {
      const drawn = this.drawn;
      this.drawn = null;
      if (drawn) this.prompt({ box: drawn });
    }
    this.view.invalidate();
  }

  overlay() {
    const active = this.work?.active ?? null;
    const marks = (active?.points ?? []).map(([x, y], i) => ({ x, y, label: active.labels[i] }));
    const objects = (this.work?.objects ?? []).map((each) => ({
      path: each.path, id: each.id, active: each === active,
    }));
    return { objects, marks, box: this.drawn ?? active?.box ?? null };
  }

  render() {
    const objects = this.work?.objects ?? [];
    $("object-count").textContent = objects.length || "";
    $("no-objects").hidden = objects.length > 0;
    $("objects").replaceChildren(...objects.map((each) => this.row(each)));
    $("undo").disabled = !this.work || this.work.place === 0;
    $("redo").disabled = !this.work || this.work.place === this.work.states.length - 1;
    $("geojson").disabled = objects.length === 0;
    $("done").disabled = !this.work?.active;
    const zoom = this.view.modelZoom;
    $("hint").textContent = this.work?.waiting
      ? "The server is looking…"
      : `Click an object, or drag a box around it.${zoom > 1 ? ` Zoom in for small ones.` : ""}`;
    this.view.invalidate();
  }

  row(each) {
    const row = document.createElement("li");
    if (each.id === this.work.now.active) row.dataset.active = "";
    const find = document.createElement("button");
    find.className = "find";
    find.style.borderLeft = `4px solid ${colourOf(each.id)}`;
    const cut = each.cut ? ", cut" : "";
    find.textContent = `${each.id}: ${each.area.toLocaleString("en")} px${cut}`;
    find.title = "Show it";
    find.onclick = () => {
      const [x, y, width, height] = each.bbox;
      this.view.reveal({ x, y, width, height });
    };
    const remove = document.createElement("button");
    remove.textContent = "Delete";
    remove.setAttribute("aria-label", `Delete object ${each.id}`);
    remove.onclick = () => this.work.remove(each.id);
    row.append(find, remove);
    return row;
  }

  download() {
    const text = JSON.stringify(geojsonOf(this.work.objects, this.info));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/geo+json" }));
    link.download = `${this.info.path.split("/").pop().replace(/\.[^.]*$/, "")}.geojson`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    this.work.saved = this.work.now;
  }

  setTool(tool) {
    this.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    this.pointer.refresh();
  }

  wire() {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.onclick = () => this.setTool(button.dataset.tool);
    }
    const calls = {
      undo: () => this.work?.undo(),
      redo: () => this.work?.redo(),
      done: () => this.work?.finish(),
      geojson: () => this.download(),
      "zoom-in": () => this.view.zoom(1.5),
      "zoom-out": () => this.view.zoom(1 / 1.5),
      "zoom-fit": () => this.view.fit(),
    };
    for (const [id, call] of Object.entries(calls)) $(id).onclick = call;
    $("scenes").onchange = () => {
      const question = "Leave the objects of this image, which were not downloaded?";
      if (this.work?.unsaved && !confirm(question)) {
        $("scenes").value = this.info.path;
      } else {
        this.open($("scenes").value);
      }
    };
    addEventListener("beforeunload", (event) => {
      if (this.work?.unsaved) event.preventDefault();
    });
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("keyup", (event) => {
      if (event.key === " ") this.pointer.setSpace(false);
    });
    this.setTool("add");
  }

  key(event) {
    const field = event.target.closest?.("input, select, dialog");
    if (field || event.altKey) return;
    const control = event.ctrlKey || event.metaKey;
    const step = 80;
    const keys = {
      a: () => this.setTool("add"),
      r: () => this.setTool("remove"),
      b: () => this.setTool("box"),
      v: () => this.setTool("hand"),
      Enter: () => event.target.tagName !== "BUTTON" && this.work?.finish(),
      Escape: () => this.work?.finish(),
      Delete: () => this.work?.active && this.work.remove(this.work.active.id),
      "+": () => this.view.zoom(1.5),
      "=": () => this.view.zoom(1.5),
      "-": () => this.view.zoom(1 / 1.5),
      0: () => this.view.fit(),
      ArrowLeft: () => this.view.pan(step, 0),
      ArrowRight: () => this.view.pan(-step, 0),
      ArrowUp: () => this.view.pan(0, step),
      ArrowDown: () => this.view.pan(0, -step),
      " ": () => event.target.tagName !== "BUTTON" && this.pointer.setSpace(true),
    };
    if (control && event.key.toLowerCase() === "z") {
      if (event.shiftKey) this.work?.redo();
      else this.work?.undo();
    } else if (control || !keys[event.key]) {
      return;
    } else if (keys[event.key]() === false) {
      return; // a button that has the focus takes it
    }
    event.preventDefault();
  }

  showZoom() {
    const percent = 100 * this.view.scale;
    $("zoom-fit").textContent = `${percent < 10 ? percent.toFixed(1) : Math.round(percent)} %`;
    const error = this.view.tiles?.error;
    if (error && error !== this.said) toast(error.message, "bad");
    this.said = error;
  }

  fail(message) {
    $("failure-text").textContent = message;
    $("failure").hidden = false;
  }
}

globalThis.scenePage = new ScenePage();
globalThis.scenePage.start();
