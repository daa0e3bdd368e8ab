// The objects of a photo, with undo and redo.

/**
 * A document is {objects, active}, and never changed: each edit makes a new one.
 *
 * objects  {key, id, classKey, name, mask, iou, prompts} in the order they were made; prompts is
 *          {points, labels, box}, or null of a mask that was not made by prompts
 * active   the key of the object that clicks refine, or null
 */
export const EMPTY = Object.freeze({ objects: Object.freeze([]), active: null });

export class History {
  constructor(onChange) {
    this.onChange = onChange;
    this.reset(EMPTY);
  }

  /** Start with a document that cannot be undone. */
  reset(document) {
    this.past = [];
    this.future = [];
    this.now = document;
  }

  get objects() {
    return this.now.objects;
  }

  get active() {
    return this.now.objects.find((each) => each.key === this.now.active) ?? null;
  }

  /** Make an edit that undo takes back. */
  edit(document, what) {
    this.past.push({ document: this.now, what });
    this.future = [];
    this.now = document;
    this.onChange(what);
  }

  /** Choose another object; no step of its own for undo. */
  activate(key) {
    if (this.now.active === key) return;
    this.now = { ...this.now, active: key };
    this.onChange(null);
  }

  /**
   * Change what the server has told us (ids, another tab's objects) in every document, so that undo
   * takes back the user's own steps only.
   */
  rebase(change) {
    this.now = change(this.now);
    this.past = this.past.map((step) => ({ ...step, document: change(step.document) }));
    this.future = this.future.map((step) => ({ ...step, document: change(step.document) }));
  }

  add(object) {
    const objects = [...this.now.objects, object];
    this.edit({ objects, active: object.key }, "new object");
  }

  update(key, changes, what) {
    const objects = this.now.objects.map((each) =>
      each.key === key ? { ...each, ...changes } : each);
    this.edit({ ...this.now, objects }, what);
  }

  remove(key) {
    const objects = this.now.objects.filter((each) => each.key !== key);
    const active = this.now.active === key ? null : this.now.active;
    this.edit({ objects, active }, "deleted");
  }

  /** Take back the last edit; returns what it was, or null. */
  undo() {
    const step = this.past.pop();
    if (!step) return null;
    this.future.push({ document: this.now, what: step.what });
    this.now = step.document;
    this.onChange(step.what);
    return step.what;
  }

  redo() {
    const step = this.future.pop();
    if (!step) return null;
    this.past.push({ document: this.now, what: step.what });
    this.now = step.document;
    this.onChange(step.what);
    return step.what;
  }
}
