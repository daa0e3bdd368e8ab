// The objects of one photo, kept in this browser at once and in annotations.json soon after.

import { ServerError } from "./api.js";
import { randomKey } from "./classes.js";
import { History } from "./history.js";
import { mergeObjects, sameObjects } from "./merge.js";
import { formatMask, parseMask } from "./rle.js";
import { kept } from "./storage.js";

const SAVE_AFTER = 200; // ms without a further change
const RETRY_FIRST = 1000;
const RETRY_MOST = 10000;

const texts = new WeakMap();

/** The mask as COCO's text, computed once. */
export function textOf(mask) {
  let text = texts.get(mask);
  if (!text) texts.set(mask, (text = formatMask(mask)));
  return text;
}

/** Objects as the server takes them. */
export function toWire(objects, classes) {
  return objects.map((each) => {
    const { id, name, colour } = classes.get(each.classKey) ?? classes.forNewObject();
    return {
      key: each.key,
      id: each.id,
      category: id === null ? { name, color: colour } : { id },
      segmentation: textOf(each.mask),
      name: each.name || null,
      predicted_iou: each.iou,
      points: each.prompts?.points ?? [],
      labels: each.prompts?.labels ?? [],
      box: each.prompts?.box ?? null,
    };
  });
}

/** Objects as this page has them; the classes must have adopted the categories before. */
export function fromWire(annotations, classes) {
  return annotations.map((each) => {
    const category = each.category ?? {};
    const kind = classes.ofCategory(category.id) ?? classes.add(category.name ?? "object");
    const prompted = each.points.length || each.box;
    return {
      key: each.key,
      id: each.id,
      classKey: kind.key,
      name: each.name ?? "",
      mask: parseMask(each.segmentation),
      iou: each.predicted_iou ?? null,
      prompts: prompted ? { points: each.points, labels: each.labels, box: each.box } : null,
    };
  });
}

/**
 * The history of one photo's objects and where they are kept.
 *
 * state  "clean", "dirty", "saving", "offline" (tried again by itself) or "refused"; `problem` is
 *        the sentence to show, `retryAt` the time of the next try
 */
export class PhotoWork {
  /**
   * name       the photo's name in the folder, or any name
   * storeKey   where this browser keeps it
   * api        null for a photo that is in no folder: it is kept in this browser only
   * notify     called with (work, what) on each change: what is "document", "state" or a sentence
   */
  constructor({ name, storeKey, api, classes, notify, blob = null }) {
    Object.assign(this, { name, storeKey, api, classes, notify, blob });
    this.history = new History((what) => this.#changed(what));
    this.base = [];
    this.revision = null;
    this.keptAside = 0;
    this.state = "clean";
    this.problem = "";
    this.timer = 0;
    this.delay = RETRY_FIRST;
    this.version = 0;
    this.loaded = false;
    this.writing = Promise.resolve();
  }

  get editable() {
    return this.loaded;
  }

  /** Fetch what is saved, and merge what this browser had kept unsaved into it; once. */
  load() {
    this.loading ??= this.#load().catch((error) => {
      this.loading = null;
      throw error;
    });
    return this.loading;
  }

  async #load() {
    const draft = await kept.get(this.storeKey).catch(() => undefined);
    if (this.api) this.#adopt(await this.api.annotations(this.name));
    let objects = this.base;
    if (draft) {
      for (const each of draft.classes ?? []) this.#restoreClass(each);
      const mine = fromWire(draft.annotations, this.classes);
      const old = fromWire(draft.base ?? [], this.classes);
      objects = this.api ? mergeObjects(old, mine, this.base, randomKey).objects : mine;
    }
    this.history.reset({ objects, active: null });
    this.loaded = true;
    this.notify(this, "document");
    if (this.api && draft) {
      const unsaved = !sameObjects(objects, this.base) || this.classes.unsent.length > 0;
      if (unsaved) this.#dirty();
      else await this.#forgetDraft();
    }
  }

  #restoreClass({ id, name, colour, changed }) {
    const known = id === null ? null : this.classes.ofCategory(id);
    if (known && changed) this.classes.change(known.key, { name, colour });
    if (!known && id === null) {
      const { key } = this.classes.add(name);
      this.classes.change(key, { colour });
    }
  }

  #adopt({ revision, annotations, categories, kept_aside: keptAside }) {
    this.classes.adopt(categories);
    this.revision = revision;
    this.keptAside = keptAside;
    this.base = fromWire(annotations, this.classes);
  }

  #changed(what) {
    this.notify(this, "document");
    // Which object is active is no work to keep.
    if (what !== null) this.#dirty();
  }

  /** A class was renamed or coloured: that is saved with this photo. */
  touch() {
    this.#dirty();
  }

  #dirty() {
    this.version += 1;
    this.#keepDraft();
    if (!this.api) return;
    if (this.state !== "saving") this.#become(this.state === "offline" ? "offline" : "dirty");
    if (this.state === "dirty") this.#schedule(SAVE_AFTER);
  }

  #keepDraft() {
    const { classes, history, base, name, blob } = this;
    const draft = {
      name,
      blob,
      annotations: toWire(history.objects, classes),
      base: toWire(base, classes),
      classes: classes.all.map(({ id, name: text, colour, changed }) => ({
        id, name: text, colour, changed,
      })),
      time: Date.now(),
    };
    this.writing = kept.put(this.storeKey, draft).catch((error) => {
      this.notify(this, `This browser cannot keep your work (${error?.message ?? error}).`);
    });
  }

  async #forgetDraft() {
    await this.writing;
    await kept.remove(this.storeKey).catch(() => {});
  }

  #schedule(delay) {
    clearTimeout(this.timer);
    this.retryAt = Date.now() + delay;
    this.timer = setTimeout(() => this.save(), delay);
  }

  #become(state, problem = "") {
    this.state = state;
    this.problem = problem;
    this.notify(this, "state");
  }

  /** Write now what is unsaved. */
  async save() {
    clearTimeout(this.timer);
    if (!this.api || !this.loaded || this.state === "saving" || this.state === "clean") return;
    const { version } = this;
    const sent = this.classes.unsent;
    this.#become("saving");
    const body = {
      annotations: toWire(this.history.objects, this.classes),
      categories: sent.map(({ id, name, colour }) => ({ id, name, color: colour })),
    };
    try {
      const saved = await this.api.save(this.name, this.revision, body);
      this.classes.markSent(sent);
      this.#adopt(saved);
      this.#takeIds();
      this.delay = RETRY_FIRST;
      if (version === this.version) {
        await this.#forgetDraft();
        // A change while the draft was removed has written a new one after this.
        this.#become(version === this.version ? "clean" : "dirty");
      } else {
        this.#become("dirty");
      }
      if (this.state === "dirty") {
        this.#keepDraft();
        this.#schedule(SAVE_AFTER);
      }
      this.notify(this, "saved");
    } catch (error) {
      this.#failed(error);
    }
  }

  #failed(error) {
    if (!(error instanceof ServerError)) {
      this.#become("refused", `The objects could not be saved: ${error.message}`);
      throw error;
    }
    if (error.status === 412 && error.body?.current) {
      this.#merge(error.body.current);
    } else if (error.passing) {
      this.#become("offline", error.message);
      this.#schedule(this.delay);
      this.delay = Math.min(this.delay * 2, RETRY_MOST);
    } else {
      this.#become("refused", error.message);
    }
  }

  /** Another tab or program saved this photo first. */
  #merge(current) {
    const before = this.base;
    this.#adopt(current);
    const merge = (document) => this.#merged(before, document);
    const { copies } = mergeObjects(before, this.history.objects, this.base, randomKey);
    this.history.rebase(merge);
    this.version += 1;
    this.#keepDraft();
    this.#become("dirty");
    this.#schedule(0);
    this.notify(this, "document");
    this.notify(this, copies
      ? `Another tab changed this photo too. Both tabs' masks of ${copies === 1
        ? "one object" : `${copies} objects`} were kept: delete the one you do not want.`
      : "Another tab changed this photo too. Its changes and yours were joined.");
  }

  #merged(before, document) {
    const { objects } = mergeObjects(before, document.objects, this.base, randomKey);
    const active = objects.some((each) => each.key === document.active) ? document.active : null;
    return { objects, active };
  }

  #takeIds() {
    const ids = new Map(this.base.map((each) => [each.key, each.id]));
    this.history.rebase((document) => ({
      ...document,
      objects: document.objects.map((each) =>
        (ids.has(each.key) && ids.get(each.key) !== each.id
          ? { ...each, id: ids.get(each.key) } : each)),
    }));
  }

  /** Look whether another tab has saved this photo, unless there is unsaved work here. */
  async refresh() {
    if (!this.api || !this.loaded || this.state !== "clean") return;
    const { version } = this;
    const current = await this.api.annotations(this.name).catch(() => null);
    if (!current || current.revision === this.revision) return;
    // A change here while the answer was on its way is merged when it is saved.
    if (version !== this.version || this.state !== "clean") return;
    const before = this.base;
    this.#adopt(current);
    this.history.rebase((document) => this.#merged(before, document));
    this.notify(this, "document");
    this.notify(this, "Another tab changed this photo; its objects are shown.");
  }
}
