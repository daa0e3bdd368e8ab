// The objects of a large image: prompts, answers, undo.

import { ServerError } from "./api.js";
import { pathOf } from "./scene_view.js";

/**
 * Objects are never changed but replaced: {id, points, labels, box, zoom, window, ref, polygons,
 * bbox, area, iou, cut, path}, all coordinates in pixels of the image.
 */
export class SceneWork {
  /**
   * ask      (an object's prompts, whether they are ambiguous) -> {window, masks}
   * changed  called when there is something to draw again
   */
  constructor(ask, changed) {
    this.ask = ask;
    this.changed = changed;
    this.states = [{ objects: [], active: null }];
    this.place = 0;
    this.waiting = 0;
    this.saved = this.now;
    this.last = Promise.resolve();
    this.nextId = 1;
  }

  get now() {
    return this.states[this.place];
  }

  get objects() {
    return this.now.objects;
  }

  get active() {
    return this.objects.find(({ id }) => id === this.now.active) ?? null;
  }

  /** A click, a box, or both of one object; answered after those before it. */
  prompt({ point = null, label = 1, box = null, zoom }) {
    this.waiting += 1;
    this.last = this.last.then(() => this.#answer(point, label, box, zoom)).finally(() => {
      this.waiting -= 1;
      this.changed();
    });
    this.changed();
    return this.last;
  }

  async #answer(point, label, box, zoom) {
    const before = box ? null : this.active;
    if (!before && point && !label) return; // there is nothing to take away from
    const prompts = {
      points: [...(before?.points ?? []), ...(point ? [point] : [])],
      labels: [...(before?.labels ?? []), ...(point ? [label] : [])],
      box: box ?? before?.box ?? null,
    };
    const ambiguous = !before && !box;
    const asked = { ...prompts, zoom: before?.zoom ?? zoom };
    let answer;
    try {
      answer = await this.ask({ ...asked, window: before?.window, mask: before?.ref }, ambiguous);
    } catch (error) {
      // The server has forgotten the mask so far; all clicks are there to make it again.
      if (!(error instanceof ServerError) || error.status !== 404 || !before) throw error;
      answer = await this.ask(asked, ambiguous);
    }
    const best = answer.masks.reduce((a, b) => (b.predicted_iou > a.predicted_iou ? b : a));
    const id = before?.id ?? this.nextId;
    if (!before) this.nextId += 1;
    const made = {
      ...asked,
      id,
      window: answer.window,
      ref: best.ref,
      polygons: best.polygons,
      bbox: best.bbox,
      area: best.area,
      iou: best.predicted_iou,
      cut: best.cut,
      path: pathOf(best.polygons),
    };
    const unchanged = this.objects.filter((each) => each.id !== id);
    this.#set({ objects: [...unchanged, made].sort((a, b) => a.id - b.id), active: id });
  }

  /** The next click begins a new object. */
  finish() {
    if (this.now.active !== null) this.#set({ ...this.now, active: null });
  }

  remove(id) {
    const objects = this.objects.filter((each) => each.id !== id);
    this.#set({ objects, active: this.now.active === id ? null : this.now.active });
  }

  undo() {
    this.place = Math.max(0, this.place - 1);
    this.changed();
  }

  redo() {
    this.place = Math.min(this.states.length - 1, this.place + 1);
    this.changed();
  }

  /** Whether there are objects that were not downloaded. */
  get unsaved() {
    return this.objects.length > 0 && this.objects !== this.saved.objects;
  }

  #set(state) {
    this.states = [...this.states.slice(0, this.place + 1), state].slice(-200);
    this.place = this.states.length - 1;
    this.changed();
  }
}

/** A FeatureCollection in the image's CRS, or in its pixels, y down, where it has none. */
export function geojsonOf(objects, { crs, transform }) {
  const [a, b, c, d, e, f] = transform ?? [1, 0, 0, 0, 1, 0];
  const place = ([x, y]) => [a * x + b * y + c, d * x + e * y + f];
  const ring = (corners) => [...corners, corners[0]].map(place);
  const collection = {
    type: "FeatureCollection",
    features: objects.map(({ id, polygons, area, iou, cut }) => ({
      type: "Feature",
      id,
      properties: { id, area_px: area, predicted_iou: iou, cut },
      geometry: {
        type: "MultiPolygon",
        coordinates: polygons.map(({ exterior, holes }) => [exterior, ...holes].map(ring)),
      },
    })),
  };
  if (transform && crs) collection.crs = { type: "name", properties: { name: crs } };
  return collection;
}
