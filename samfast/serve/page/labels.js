// What the user does to objects and classes, in the panel or by keys.

import { PALETTE } from "./classes.js";
import { $, announce, titleOf, toast } from "./panels.js";

export class Labels {
  constructor(app) {
    this.app = app;
    this.allHidden = false;
    this.hidden = new Set(); // keys of objects
    this.pointed = null; // the key of an object
  }

  /** Forget the photo that is left. */
  forget() {
    this.hidden = new Set();
    this.pointed = null;
  }

  chooseObject(key) {
    const { app } = this;
    if (!app.work) return;
    app.work.history.activate(key);
    const object = app.work.history.active;
    if (object) app.classes.choose(object.classKey);
    app.clicks.hover = null;
    app.render();
  }

  /** The pointer is at a row of the list, or at none, null. */
  pointAt(key) {
    this.pointed = key;
    this.app.view.invalidate();
  }

  stepObject(step) {
    const { objects, active } = this.app.work?.history ?? { objects: [] };
    if (objects.length === 0) return;
    const at = active ? objects.indexOf(active) : step > 0 ? -1 : 0;
    const next = objects[(at + step + objects.length) % objects.length];
    this.chooseObject(next.key);
    announce(titleOf(next, objects, this.app.classes));
  }

  hideObject(key) {
    if (this.hidden.has(key)) this.hidden.delete(key);
    else this.hidden.add(key);
    this.app.render();
  }

  hideAll() {
    this.allHidden = !this.allHidden;
    this.app.render();
    this.app.clicks.preview();
  }

  deleteObject(key = this.app.work?.history.now.active) {
    if (!key || !this.app.work) return;
    this.hidden.delete(key);
    this.pointed = null;
    this.app.work.history.remove(key);
    announce("Deleted.");
  }

  renameObject(key, name) {
    this.app.work.history.update(key, { name }, "renamed");
  }

  classifyObject(key, classKey) {
    this.app.work.history.update(key, { classKey }, "classified");
    this.app.classes.choose(classKey);
  }

  nameObject() {
    if (!this.app.work?.history.active) return;
    this.app.controls.openPanel(true);
    $("object-name")?.select();
  }

  colourOf(object) {
    if ($("by-object").checked) {
      return PALETTE[this.app.work.history.objects.indexOf(object) % PALETTE.length];
    }
    return this.app.classes.get(object.classKey)?.colour ?? PALETTE[0];
  }

  /** Whether the object's click gave masks of other sizes as well. */
  hasSiblings(object) {
    return (this.app.prompter.siblings.get(object.mask)?.length ?? 0) > 1;
  }

  canResize(object, step) {
    const siblings = this.app.prompter.siblings.get(object.mask) ?? [];
    return Boolean(siblings[siblings.findIndex(({ mask }) => mask === object.mask) + step]);
  }

  resizeMask(step) {
    const active = this.app.work?.history.active;
    if (!active || !this.canResize(active, step)) return;
    const siblings = this.app.prompter.siblings.get(active.mask);
    const { mask, iou } =
      siblings[siblings.findIndex((each) => each.mask === active.mask) + step];
    this.app.work.history.update(active.key, { mask, iou }, step > 0 ? "larger" : "smaller");
    this.app.clicks.tell(step > 0 ? "A larger mask of" : "A smaller mask of");
  }

  chooseClass(index) {
    const chosen = this.app.classes.all[index];
    if (!chosen) return;
    const active = this.app.work?.history.active;
    if (active && active.classKey !== chosen.key) this.classifyObject(active.key, chosen.key);
    else this.app.classes.choose(chosen.key);
    announce(`Class ${chosen.name}.`);
  }

  changeClass(key, changes) {
    const { name } = changes;
    if (name && this.app.classes.all.some((each) => each.key !== key && each.name === name)) {
      toast(`There is a class ${name} already.`);
      return;
    }
    this.app.classes.change(key, changes);
    this.app.work?.touch();
  }

  newClass() {
    this.app.controls.openPanel(true);
    $("class-name").focus();
  }

  addClass(name) {
    if (!name.trim()) return;
    const added = this.app.classes.add(name);
    this.chooseClass(this.app.classes.all.findIndex((each) => each.key === added.key));
    $("canvas").focus({ preventScroll: true });
  }

  undo() {
    const what = this.app.work?.history.undo();
    if (what) announce(`Undone: ${what}.`);
  }

  redo() {
    const what = this.app.work?.history.redo();
    if (what) announce(`Done again: ${what}.`);
  }
}
