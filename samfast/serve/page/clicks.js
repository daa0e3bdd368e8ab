// Clicks and boxes on the photo: what they ask of the server, and the objects they make.

import { randomKey } from "./classes.js";
import { $, announce, titleOf, toast } from "./panels.js";
import { withClick } from "./prompter.js";
import { areaOf, contains, difference, union } from "./rle.js";

export class Clicks {
  constructor(app) {
    this.app = app;
    this.removing = false; // whether a click at the pointer takes away
    this.forget();
  }

  /** Forget the photo that is left. */
  forget() {
    Object.assign(this, { pointer: null, hover: null, box: null });
    this.waiting = [];
    this.queue = Promise.resolve();
  }

  /** The pointer is at a pixel, or beside the photo, null. */
  pointTo(pixel, { remove }) {
    this.pointer = pixel;
    this.removing = remove;
    if (pixel) this.app.tools.cross = null;
    this.preview();
  }

  /** The photo has moved below the mouse, or is another one. */
  followMouse() {
    this.pointer = this.app.gestures.pixel();
    this.preview();
  }

  /** Show what a click at the pointer or crosshair would take. */
  preview() {
    const { app } = this;
    const spot = app.tools.cross ?? this.pointer;
    if (!spot) {
      this.#stopPreview();
      return;
    }
    if (app.everything.on) {
      const candidate = app.everything.at(spot);
      this.hover = candidate ? { mask: candidate.mask, remove: candidate.key !== null } : null;
      app.view.invalidate();
      return;
    }
    const remove = app.tools.cross ? app.tools.chosen === "remove" : this.removing;
    const wanted = $("preview").checked && app.photo?.ready && !this.waiting.length &&
      !app.tools.boxStart && !app.labels.allHidden && this.#wantedAt(spot, remove);
    if (!wanted) {
      this.#stopPreview();
      return;
    }
    app.prompter.preview(wanted.prompts, wanted.previous, ({ mask }) => {
      this.hover = { mask: this.#maskOf(wanted, mask), remove };
      app.view.invalidate();
    });
  }

  #stopPreview() {
    this.app.prompter.stopPreview();
    this.hover = null;
    this.app.view.invalidate();
  }

  click(pixel, { remove, select }) {
    const { app } = this;
    if (!app.photo || !$("failure").hidden) return;
    if (app.everything.on) {
      app.everything.keepAt(pixel);
      return;
    }
    if (select) {
      app.labels.chooseObject(this.#objectAt(pixel)?.key ?? null);
      return;
    }
    const mark = { point: pixel, label: remove ? 0 : 1 };
    this.#enqueue(mark, async (still) => {
      const wanted = this.#wantedAt(pixel, remove);
      if (!wanted) {
        toast("Nothing to take away from: click an object first.");
        return;
      }
      const { target, region, prompts, previous } = wanted;
      const answer = await app.patience.untilAnswered(
        () => app.prompter.ask(prompts, previous), app.photos.signal,
      );
      // An undo meanwhile may have changed the object that was clicked.
      const { history } = app.work;
      const now = target && history.objects.find((each) => each.key === target.key);
      if (!still() || (target && now?.mask !== target.mask)) return;
      const mask = this.#maskOf(wanted, answer.mask);
      if (!areaOf(mask)) {
        toast(target ? "That would leave nothing of the object." : "There is no object here.");
        return;
      }
      if (!target) this.#addObject(mask, answer.iou, prompts);
      else {
        const changes = region ? { mask, iou: null } : { mask, iou: answer.iou, prompts };
        history.activate(target.key);
        history.update(target.key, changes, remove ? "taken away" : "added");
      }
      this.tell(remove ? "Taken away from" : target ? "Added to" : "Outlined");
    });
  }

  /** A box is being drawn; a box that is done asks for its object. */
  drawBox(box, { done }) {
    const { app } = this;
    if (!app.photo || app.everything.on) return;
    this.box = done ? null : box;
    if (done && box) {
      this.#enqueue({ box }, async (still) => {
        const prompts = { points: [], labels: [], box };
        const { mask, iou } = await app.patience.untilAnswered(
          () => app.prompter.ask(prompts), app.photos.signal,
        );
        if (!still()) return;
        if (!areaOf(mask)) {
          toast("There is no object in this box.");
          return;
        }
        this.#addObject(mask, iou, prompts);
        this.tell("Outlined");
      });
    }
    app.view.invalidate();
  }

  /**
   * What a click would ask:
   * {prompts, previous, target, label, region}; null where it asks nothing.
   */
  #wantedAt(pixel, remove) {
    const history = this.app.work?.history;
    if (!history) return null;
    let target = history.active;
    if (remove && !target) target = this.#objectAt(pixel);
    if (remove && !target) return null;
    if (!remove && $("one-click").checked) target = null;
    const label = remove ? 0 : 1;
    // A mask that prompts did not make is changed by the masks of clicks: joined, or cut out.
    const region = target && !target.prompts;
    return {
      target,
      label,
      region,
      prompts: withClick(region ? null : target?.prompts, pixel, region ? 1 : label),
      previous: region ? null : target?.mask ?? null,
    };
  }

  /** The mask that the answer to a click makes of its object. */
  #maskOf({ target, label, region }, mask) {
    if (!region) return mask;
    return label ? union(target.mask, mask) : difference(target.mask, mask);
  }

  #objectAt([x, y]) {
    const hits = (this.app.work?.history.objects ?? []).filter(({ key, mask }) =>
      !this.app.labels.hidden.has(key) && contains(mask, x, y));
    return hits.sort((one, other) => areaOf(one.mask) - areaOf(other.mask))[0] ?? null;
  }

  #addObject(mask, iou, prompts) {
    const classKey = this.app.classes.forNewObject().key;
    const key = randomKey();
    this.app.work.history.add({ key, id: null, classKey, name: "", mask, iou, prompts });
  }

  /** Say to screen readers what has become of the object. */
  tell(what) {
    const { active, objects } = this.app.work.history;
    if (!active) return;
    const share = (100 * areaOf(active.mask)) / (active.mask.width * active.mask.height);
    const title = titleOf(active, objects, this.app.classes);
    announce(`${what} ${title}: ${share.toFixed(1)} percent of the photo.`);
  }

  /** Do a job after those before it: each click builds on the mask of the click before. */
  #enqueue(mark, job) {
    const { photo } = this.app;
    const still = () => this.app.photo === photo;
    this.waiting.push(mark);
    this.hover = null;
    this.app.render();
    this.queue = this.queue.then(async () => {
      try {
        await this.app.photos.ready;
        if (still()) await job(still);
      } catch (error) {
        // What keeps a photo from being ready is said in its place.
        if (still() && photo.ready && error.name !== "AbortError") toast(error.message, "bad");
      } finally {
        if (still()) {
          this.waiting = this.waiting.filter((each) => each !== mark);
          this.hover = null;
          this.app.render();
        }
      }
    });
  }
}
