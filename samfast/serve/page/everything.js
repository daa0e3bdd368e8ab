// Everything in a photo: outlines that the server finds, of which clicks keep some.

import { randomKey } from "./classes.js";
import { $, announce, toast } from "./panels.js";
import { areaOf, contains, difference, parseMask } from "./rle.js";

const SAME = 0.8; // IoU from which a mask counts as an object that is there already

export class Everything {
  constructor(app) {
    this.app = app;
    this.pointsPerSide = 32;
    this.leave();
  }

  leave() {
    this.controller?.abort();
    Object.assign(this, { on: false, searching: false, share: 0 });
    Object.assign(this, { candidates: [], controller: null });
  }

  async toggle() {
    const { app } = this;
    if (!app.photo?.picture || !$("failure").hidden) return;
    if (this.on) {
      app.tools.finish();
      return;
    }
    const { photo, work } = app;
    work.history.activate(null);
    app.clicks.hover = null;
    try {
      await app.photos.ready;
      if (app.photo !== photo) return;
      await app.patience.untilAnswered(
        () => this.find(app.prompter.image, work.history.objects), app.photos.signal,
      );
      if (app.photo !== photo || !this.on) return;
      const count = this.candidates.length;
      announce(count ? `${count} outlines. A click keeps one.` : "Nothing more was found.");
      if (!count) toast("Nothing more was found.");
    } catch (error) {
      if (app.photo === photo && error.name !== "AbortError") toast(error.message, "bad");
    }
    app.render();
  }

  /** Look for everything that is none of the objects; resolves when all has been found. */
  async find(image, objects) {
    this.leave();
    const controller = new AbortController();
    Object.assign(this, { on: true, searching: true, controller });
    this.app.render();
    try {
      const { id } = await image;
      controller.signal.throwIfAborted();
      const progress = (share) => {
        if (this.controller !== controller) return;
        this.share = share;
        this.app.render();
      };
      const onRecord = (record) => {
        if (this.controller !== controller) return;
        const mask = parseMask(record.segmentation);
        const area = areaOf(mask);
        if (!area || objects.some((each) => overlap(mask, each.mask) > SAME)) return;
        this.candidates.push({ mask, iou: record.predicted_iou, area, key: null });
        // The smallest is on top, so that a click takes a part rather than the whole around it.
        this.candidates.sort((one, other) => other.area - one.area);
        this.app.render();
      };
      const { pointsPerSide } = this;
      await this.app.api.segment(id, {
        pointsPerSide, onRecord, progress, signal: controller.signal,
      });
    } catch (error) {
      if (error.name === "AbortError") return;
      if (this.controller === controller) this.leave();
      throw error;
    } finally {
      if (this.controller === controller) this.searching = false;
      this.app.render();
    }
  }

  /** The smallest candidate that has the pixel, or null. */
  at([x, y]) {
    return this.candidates.findLast(({ mask }) => contains(mask, x, y)) ?? null;
  }

  /** Keep the candidate at a pixel, or drop it again. */
  keepAt(pixel) {
    const candidate = this.at(pixel);
    if (!candidate) return;
    const { history } = this.app.work;
    if (candidate.key && history.objects.some(({ key }) => key === candidate.key)) {
      history.remove(candidate.key);
      candidate.key = null;
    } else {
      this.#keep([candidate]);
    }
    this.app.clicks.preview();
  }

  keepAll() {
    if (!this.on) return;
    this.#keep(this.candidates.filter(({ key }) =>
      !this.app.work.history.objects.some((each) => each.key === key)));
  }

  #keep(candidates) {
    if (candidates.length === 0) return;
    const { history } = this.app.work;
    const classKey = this.app.classes.forNewObject().key;
    const added = candidates.map((candidate) => {
      candidate.key = randomKey();
      const { key, mask, iou } = candidate;
      return { key, id: null, classKey, name: "", mask, iou, prompts: null };
    });
    history.edit({ objects: [...history.objects, ...added], active: null }, "kept");
    announce(added.length === 1 ? "Kept." : `${added.length} objects kept.`);
  }
}

function overlap(one, other) {
  const [a, b] = [areaOf(one), areaOf(other)];
  if (Math.min(a, b) < SAME * Math.max(a, b)) return 0;
  const only = areaOf(difference(one, other));
  return (a - only) / (b + only);
}
