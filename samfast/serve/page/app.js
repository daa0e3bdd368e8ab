// The page: what the user does, joined to the server, the canvas and the panels.

import { Api, ServerError } from "./api.js";
import { Classes, PALETTE, randomKey } from "./classes.js";
import { Everything } from "./everything.js";
import { cocoOf, cutoutOf, download, labelMapOf, yoloOf } from "./exports.js";
import { watchPointer } from "./gestures.js";
import { bindings, watchKeys } from "./keyboard.js";
import {
  $, Strip, announce, fillHelp, showClasses, showObjects, titleOf, toast, wireDialogs,
} from "./panels.js";
import { Progress } from "./progress.js";
import { Prompter, withClick } from "./prompter.js";
import { areaOf, contains, difference, union } from "./rle.js";
import { PhotoWork } from "./saving.js";
import { kept, settings } from "./storage.js";
import { View } from "./view.js";

const AHEAD = 2; // photos encoded before they are opened
const PICTURES_KEPT = 4;
const WORKS_KEPT = 12;
const LOCAL_KEPT = 20; // photos that were dropped on the page
const RETRY_FIRST = 1000;
const RETRY_MOST = 8000;

const touch = matchMedia("(pointer: coarse)");

class App {
  constructor() {
    this.api = new Api((wrong) => this.askToken(wrong));
    this.classes = new Classes(() => this.render());
    this.prompter = new Prompter(this.api);
    this.everything = new Everything(this.api, () => this.render());
    this.view = new View($("canvas"), () => this.scene());
    this.progress = new Progress(() => this.showHint());
    this.photos = [];
    this.folder = null;
    this.works = new Map();
    this.pictures = new Map();
    this.index = -1;
    this.photo = null; // {name, width, height, picture, ready}
    this.work = null;
    this.opening = null;
    this.tool = "add";
    this.hidden = new Set();
    this.allHidden = false;
    this.pointer = null;
    this.cross = null;
    this.boxStart = null;
    this.box = null;
    this.hover = null; // {mask, remove}
    this.pointed = null;
    this.waiting = []; // clicks that are not answered yet
    this.clicks = Promise.resolve();
    this.sleepers = new Set(); // each ends the wait before a further try
    this.lost = null; // why the server does not answer clicks
    this.renderPending = false;
  }

  // ---------------------------------------------------------------- start

  async start() {
    this.bindings = bindings(this);
    fillHelp(this.bindings);
    wireDialogs();
    this.wireButtons();
    this.gestures = watchPointer(this.view, () => this.tool, {
      hover: (pixel, how) => this.pointTo(pixel, how),
      click: (pixel, how) => this.click(pixel, how),
      box: (box, how) => this.drawBox(box, how),
      held: () => {},
    });
    watchKeys(this.bindings, this.gestures);
    this.view.onFrame = () => this.showZoom();
    this.setInsets();
    addEventListener("resize", () => this.setInsets());
    this.wireDrops();
    this.channel = new BroadcastChannel("samfast");
    this.channel.onmessage = ({ data }) => {
      if (this.work?.storeKey === data) this.work.refresh();
    };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.work?.save();
      else this.work?.refresh();
    });
    addEventListener("online", () => this.tryAgain());
    addEventListener("hashchange", () => this.openFromHash());
    const session = await this.patiently(() => this.api.session());
    $("welcome-model").textContent = `${session.model} on ${session.device}`;
    // Four times fewer clicks: a CPU answers them in seconds, and large objects are found alike.
    if (session.device === "cpu") this.everything.pointsPerSide = 16;
    this.folder = session.folder;
    if (this.folder) await this.startFolder();
    else await this.startLocal();
    this.render();
  }

  async startFolder() {
    const { name, photos, labelling } = this.folder;
    document.title = `${name} · samfast`;
    this.photos = photos;
    this.strip = new Strip(photos, this.api, (index) => this.openPhoto(index));
    $("photo-nav").hidden = false;
    $("choose").hidden = labelling;
    if (labelling) {
      $("download-folder").hidden = false;
      this.saveLeftovers();
    }
    if (photos.length === 0) {
      $("photo-nav").hidden = true;
      const title = "There is no photo here";
      this.showFailure("Copy photos to the folder, and reload.", { retry: false, title });
      return;
    }
    if (!this.openFromHash()) {
      const fresh = photos.findIndex(({ objects }) => !objects);
      await this.openPhoto(Math.max(0, fresh));
    }
  }

  /** Save what an earlier visit could not, of photos other than the one that is opened. */
  async saveLeftovers() {
    const keys = await kept.keys().catch(() => []);
    for (const key of keys.filter((each) => each.startsWith(`${this.scope}\n`))) {
      const name = key.slice(this.scope.length + 1);
      if (!this.photos.some((each) => each.name === name) || this.works.has(key)) continue;
      const work = this.workOf(name, null);
      this.works.set(key, work);
      await work.load().catch(() => this.works.delete(key));
    }
  }

  async startLocal() {
    const last = settings.get("lastLocal", null);
    const draft = last && (await kept.get(last).catch(() => null));
    if (draft?.blob) await this.openLocal(draft.blob, draft.name, last);
    else $("welcome").hidden = false;
  }

  get scope() {
    return this.folder ? `folder ${this.folder.key}` : "local";
  }

  openFromHash() {
    const wanted = new URLSearchParams(location.hash.slice(1)).get("photo");
    const index = this.photos.findIndex(({ name }) => name === wanted);
    if (index < 0 || index === this.index) return index >= 0;
    this.openPhoto(index);
    return true;
  }

  askToken(wrong) {
    const dialog = $("token-dialog");
    $("token-text").textContent = wrong
      ? "That token is not the server's. Whoever started it knows the right one."
      : "Whoever started it knows the token.";
    if (!dialog.open) dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        const given = dialog.returnValue === "use" ? $("token").value.trim() : "";
        $("token").value = "";
        resolve(given || null);
      }, { once: true });
    });
  }

  // ---------------------------------------------------------------- photos

  workOf(name, blob, key = `${this.scope}\n${name}`) {
    return new PhotoWork({
      name,
      storeKey: key,
      api: this.folder?.labelling && !blob ? this.api : null,
      classes: this.classes,
      blob,
      notify: (work, what) => this.onWork(work, what),
    });
  }

  openPhoto(index) {
    const photo = this.photos[index];
    if (!photo) return Promise.resolve();
    this.index = index;
    history.replaceState(null, "", `#${new URLSearchParams({ photo: photo.name })}`);
    this.strip.choose(index);
    return this.open({
      name: photo.name,
      key: `${this.scope}\n${photo.name}`,
      blob: null,
      fetchPicture: (signal) => this.pictureOf(photo.name, signal),
      encode: () => this.api.encode({ path: photo.name }),
    });
  }

  openLocal(blob, name, key = `local\n${name}\n${blob.size}\n${blob.lastModified ?? 0}`) {
    this.index = -1;
    settings.set("lastLocal", key);
    this.dropOldLocals();
    return this.open({
      name, key, blob, fetchPicture: async () => blob, encode: () => this.api.encode(blob),
    });
  }

  async dropOldLocals() {
    const keys = (await kept.keys().catch(() => [])).filter((each) => each.startsWith("local\n"));
    if (keys.length <= LOCAL_KEPT) return;
    const times = new Map();
    for (const key of keys) times.set(key, (await kept.get(key))?.time ?? 0);
    keys.sort((one, other) => times.get(other) - times.get(one));
    for (const key of keys.slice(LOCAL_KEPT)) await kept.remove(key);
  }

  async open({ name, key, blob, fetchPicture, encode }) {
    this.opening?.abort();
    const controller = new AbortController();
    this.opening = controller;
    const { signal } = controller;
    this.leavePhoto();
    const photo = { name, width: 0, height: 0, picture: null, ready: false };
    this.photo = photo;
    $("welcome").hidden = true;
    $("failure").hidden = true;
    this.reopen = () => this.open({ name, key, blob, fetchPicture, encode });
    this.work = this.works.get(key) ?? this.workOf(name, blob, key);
    this.works.delete(key); // and to the end: the oldest are forgotten first
    this.works.set(key, this.work);
    this.forgetWorks();
    this.render();
    this.progress.start();
    this.prompter.open(() => this.patiently(encode, signal));
    const image = this.prompter.image;
    const picture = this.patiently(() => fetchPicture(signal), signal).then(decode);
    const loaded = this.work.loaded
      ? this.work.refresh()
      : this.patiently(() => this.work.load(), signal);
    this.ready = Promise.all([image, picture, loaded]);
    this.ready.catch(() => {});
    picture.then((bitmap) => {
      if (this.photo !== photo || photo.ready) return;
      this.showPicture(photo, bitmap, bitmap);
    }, () => {});
    const [encoded, shown, saved] = await Promise.allSettled([image, picture, loaded]);
    if (this.photo !== photo) return;
    this.progress.stop(encoded.status === "fulfilled");
    // The server knows best what is wrong with a file.
    const failed = [encoded, shown, saved].find((each) => each.status === "rejected");
    if (failed) {
      const { message } = failed.reason;
      this.showFailure(message[0].toUpperCase() + message.slice(1), { retry: true });
      return;
    }
    if (blob) this.work.touch();
    this.showPicture(photo, shown.value, encoded.value);
    photo.ready = true;
    announce(`${name} is ready. ${this.work.history.objects.length} objects.`);
    this.render();
    this.prepareNext();
    this.followMouse();
  }

  showPicture(photo, bitmap, { width, height }) {
    const known = photo.picture && photo.width === width && photo.height === height;
    Object.assign(photo, { picture: bitmap, width, height });
    if (!known) this.view.show(bitmap, { width, height });
    $("canvas").setAttribute("aria-label", `${photo.name}, ${width} by ${height} pixels`);
  }

  leavePhoto() {
    this.work?.save();
    this.prompter.close();
    this.everything.leave();
    this.view.clear();
    this.photo?.picture?.close?.();
    this.clicks = Promise.resolve();
    this.waiting = [];
    this.lost = null;
    this.hidden = new Set();
    Object.assign(this, { pointer: null, hover: null, cross: null, pointed: null });
    Object.assign(this, { box: null, boxStart: null });
    this.work?.history.activate(null);
    this.photo = null;
  }

  forgetWorks() {
    for (const [key, work] of this.works) {
      if (this.works.size <= WORKS_KEPT) break;
      if (work !== this.work && work.state === "clean") this.works.delete(key);
    }
  }

  /** A photo of the folder, fetched once while it is near. */
  pictureOf(name, signal) {
    let picture = this.pictures.get(name);
    if (!picture) {
      picture = this.api.photo(name, signal);
      this.pictures.set(name, picture);
      picture.catch(() => this.pictures.delete(name));
      if (this.pictures.size > PICTURES_KEPT) {
        this.pictures.delete(this.pictures.keys().next().value);
      }
    }
    return picture;
  }

  prepareNext() {
    if (this.index < 0) return;
    const next = this.photos.slice(this.index + 1, this.index + 1 + AHEAD).map(({ name }) => name);
    if (next.length === 0) return;
    this.api.prewarm(next);
    this.pictureOf(next[0]).catch(() => {});
  }

  stepPhoto(step) {
    const index = this.index + step;
    if (index < 0 || index >= this.photos.length) {
      if (this.photos.length) toast(`This is the ${step > 0 ? "last" : "first"} photo.`);
      return;
    }
    this.openPhoto(index);
  }

  showFailure(text, { retry, title = "This photo cannot be used" }) {
    $("failure-title").textContent = title;
    this.prompter.close();
    this.view.clear();
    $("failure-text").textContent = text;
    $("failure-retry").hidden = !retry;
    $("failure-next").hidden = this.index < 0 || this.index + 1 >= this.photos.length;
    $("failure").hidden = false;
    this.render();
  }

  chooseFile() {
    if (this.folder?.labelling) return;
    $("file").click();
  }

  takeFile(file) {
    if (!file) return;
    if (this.folder?.labelling) {
      toast(`This page labels the folder ${this.folder.name}: copy the photo there, and reload.`);
      return;
    }
    if (this.folder) this.strip.choose(-1);
    this.openLocal(file, file.name);
  }

  wireDrops() {
    let depth = 0;
    const files = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => {
      if (!files(event)) return;
      depth += 1;
      $("drop").hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (!files(event)) return;
      depth -= 1;
      $("drop").hidden = depth > 0 ? false : true;
    });
    addEventListener("dragover", (event) => files(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      $("drop").hidden = true;
      this.takeFile(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => this.takeFile(event.clipboardData?.files[0]));
    $("file").addEventListener("change", () => {
      this.takeFile($("file").files[0]);
      $("file").value = "";
    });
  }

  // ---------------------------------------------------------------- a server that is lost

  /** The answer of `call`, which is made again until the server answers or the photo is left. */
  async patiently(call, signal) {
    for (let delay = RETRY_FIRST; ; delay = Math.min(delay * 2, RETRY_MOST)) {
      signal?.throwIfAborted();
      try {
        const answer = await call();
        if (this.lost && !signal?.aborted) {
          this.lost = null;
          this.showState();
        }
        return answer;
      } catch (error) {
        if (!(error instanceof ServerError) || !error.passing || signal?.aborted) throw error;
        this.lost = error.message;
        this.showState();
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, delay);
          this.sleepers.add(() => {
            clearTimeout(timer);
            resolve();
          });
        });
      }
    }
  }

  tryAgain() {
    for (const wake of this.sleepers) wake();
    this.sleepers.clear();
    for (const work of this.works.values()) work.save();
  }

  // ---------------------------------------------------------------- clicks and boxes

  /** What a click would ask: {prompts, previous, target, label}; null where it asks nothing. */
  clickAt(pixel, remove) {
    const history = this.work?.history;
    if (!history) return null;
    let target = history.active;
    if (remove && !target) target = this.objectAt(pixel);
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
  maskOf({ target, label, region }, mask) {
    if (!region) return mask;
    return label ? union(target.mask, mask) : difference(target.mask, mask);
  }

  pointTo(pixel, { remove }) {
    this.pointer = pixel;
    this.removing = remove;
    if (pixel) this.cross = null;
    this.preview();
  }

  /** Show what a click at the pointer or crosshair would take. */
  preview() {
    const spot = this.cross ?? this.pointer;
    if (!spot) {
      this.prompter.stopPreview();
      this.hover = null;
      this.view.invalidate();
      return;
    }
    if (this.everything.on) {
      const candidate = this.everything.at(spot);
      this.hover = candidate ? { mask: candidate.mask, remove: candidate.key !== null } : null;
      this.view.invalidate();
      return;
    }
    const remove = this.cross ? this.tool === "remove" : this.removing;
    const wanted = $("preview").checked && this.photo?.ready && !this.waiting.length &&
      !this.boxStart && !this.allHidden && this.clickAt(spot, remove);
    if (!wanted) {
      this.prompter.stopPreview();
      this.hover = null;
      this.view.invalidate();
      return;
    }
    this.prompter.preview(wanted.prompts, wanted.previous, ({ mask }) => {
      this.hover = { mask: this.maskOf(wanted, mask), remove };
      this.view.invalidate();
    });
  }

  /** The photo has moved below the mouse, or is another one. */
  followMouse() {
    this.pointer = this.gestures.pixel();
    this.preview();
  }

  objectAt([x, y]) {
    const hits = (this.work?.history.objects ?? []).filter(({ key, mask }) =>
      !this.hidden.has(key) && contains(mask, x, y));
    return hits.sort((one, other) => areaOf(one.mask) - areaOf(other.mask))[0] ?? null;
  }

  click(pixel, { remove, select }) {
    if (!this.photo || !$("failure").hidden) return;
    if (this.everything.on) {
      this.keepCandidate(this.everything.at(pixel));
      return;
    }
    if (select) {
      this.chooseObject(this.objectAt(pixel)?.key ?? null);
      return;
    }
    const mark = { point: pixel, label: remove ? 0 : 1 };
    this.enqueue(mark, async (still) => {
      const wanted = this.clickAt(pixel, remove);
      if (!wanted) {
        toast("Nothing to take away from: click an object first.");
        return;
      }
      const { target, region, prompts, previous } = wanted;
      const answer = await this.patiently(
        () => this.prompter.ask(prompts, previous), this.opening.signal,
      );
      // An undo meanwhile may have changed the object that was clicked.
      const now = target && this.work.history.objects.find((each) => each.key === target.key);
      if (!still() || (target && now?.mask !== target.mask)) return;
      const mask = this.maskOf(wanted, answer.mask);
      if (!areaOf(mask)) {
        toast(target ? "That would leave nothing of the object." : "There is no object here.");
        return;
      }
      if (!target) this.addObject(mask, answer.iou, prompts);
      else {
        const changes = region ? { mask, iou: null } : { mask, iou: answer.iou, prompts };
        this.work.history.activate(target.key);
        this.work.history.update(target.key, changes, remove ? "taken away" : "added");
      }
      this.tell(remove ? "Taken away from" : target ? "Added to" : "Outlined");
    });
  }

  drawBox(box, { done }) {
    if (!this.photo || this.everything.on) return;
    this.box = done ? null : box;
    if (done && box) {
      this.enqueue({ box }, async (still) => {
        const prompts = { points: [], labels: [], box };
        const { mask, iou } = await this.patiently(
          () => this.prompter.ask(prompts), this.opening.signal,
        );
        if (!still()) return;
        if (!areaOf(mask)) {
          toast("There is no object in this box.");
          return;
        }
        this.addObject(mask, iou, prompts);
        this.tell("Outlined");
      });
    }
    this.view.invalidate();
  }

  addObject(mask, iou, prompts) {
    const classKey = this.classes.forNewObject().key;
    const key = randomKey();
    this.work.history.add({ key, id: null, classKey, name: "", mask, iou, prompts });
  }

  /** Say to screen readers what has become of the object. */
  tell(what) {
    const { active, objects } = this.work.history;
    if (!active) return;
    const share = (100 * areaOf(active.mask)) / (active.mask.width * active.mask.height);
    const title = titleOf(active, objects, this.classes);
    announce(`${what} ${title}: ${share.toFixed(1)} percent of the photo.`);
  }

  /** Do a job after those before it: each click builds on the mask of the click before. */
  enqueue(mark, job) {
    const { photo } = this;
    const still = () => this.photo === photo;
    this.waiting.push(mark);
    this.hover = null;
    this.render();
    this.clicks = this.clicks.then(async () => {
      try {
        await this.ready;
        if (still()) await job(still);
      } catch (error) {
        // What keeps a photo from being ready is said in its place.
        if (still() && photo.ready && error.name !== "AbortError") toast(error.message, "bad");
      } finally {
        if (still()) {
          this.waiting = this.waiting.filter((each) => each !== mark);
          this.hover = null;
          this.render();
        }
      }
    });
  }

  hasSiblings(object) {
    return (this.prompter.siblings.get(object.mask)?.length ?? 0) > 1;
  }

  canResize(object, step) {
    const siblings = this.prompter.siblings.get(object.mask) ?? [];
    return Boolean(siblings[siblings.findIndex(({ mask }) => mask === object.mask) + step]);
  }

  resizeMask(step) {
    const active = this.work?.history.active;
    if (!active || !this.canResize(active, step)) return;
    const siblings = this.prompter.siblings.get(active.mask);
    const { mask, iou } =
      siblings[siblings.findIndex((each) => each.mask === active.mask) + step];
    this.work.history.update(active.key, { mask, iou }, step > 0 ? "larger" : "smaller");
    this.tell(step > 0 ? "A larger mask of" : "A smaller mask of");
  }

  // ---------------------------------------------------------------- everything

  async toggleEverything() {
    if (!this.photo?.picture || !$("failure").hidden) return;
    if (this.everything.on) {
      this.finish();
      return;
    }
    const { photo, work } = this;
    work.history.activate(null);
    this.hover = null;
    try {
      await this.ready;
      if (this.photo !== photo) return;
      await this.patiently(
        () => this.everything.find(this.prompter.image, work.history.objects), this.opening.signal,
      );
      if (this.photo !== photo || !this.everything.on) return;
      const count = this.everything.candidates.length;
      announce(count ? `${count} outlines. A click keeps one.` : "Nothing more was found.");
      if (!count) toast("Nothing more was found.");
    } catch (error) {
      if (this.photo === photo && error.name !== "AbortError") toast(error.message, "bad");
    }
    this.render();
  }

  keepCandidate(candidate) {
    if (!candidate) return;
    const { history } = this.work;
    if (candidate.key && history.objects.some(({ key }) => key === candidate.key)) {
      history.remove(candidate.key);
      candidate.key = null;
    } else {
      this.keep([candidate]);
    }
    this.preview();
  }

  keepAll() {
    if (!this.everything.on) return;
    this.keep(this.everything.candidates.filter(({ key }) =>
      !this.work.history.objects.some((each) => each.key === key)));
  }

  keep(candidates) {
    if (candidates.length === 0) return;
    const { history } = this.work;
    const classKey = this.classes.forNewObject().key;
    const added = candidates.map((candidate) => {
      candidate.key = randomKey();
      const { key, mask, iou } = candidate;
      return { key, id: null, classKey, name: "", mask, iou, prompts: null };
    });
    history.edit({ objects: [...history.objects, ...added], active: null }, "kept");
    announce(added.length === 1 ? "Kept." : `${added.length} objects kept.`);
  }

  // ---------------------------------------------------------------- objects and classes

  chooseObject(key) {
    if (!this.work) return;
    this.work.history.activate(key);
    const object = this.work.history.active;
    if (object) this.classes.choose(object.classKey);
    this.hover = null;
    this.render();
  }

  pointAt(key) {
    this.pointed = key;
    this.view.invalidate();
  }

  stepObject(step) {
    const { objects, active } = this.work?.history ?? { objects: [] };
    if (objects.length === 0) return;
    const at = active ? objects.indexOf(active) : step > 0 ? -1 : 0;
    const next = objects[(at + step + objects.length) % objects.length];
    this.chooseObject(next.key);
    announce(titleOf(next, objects, this.classes));
  }

  hideObject(key) {
    if (this.hidden.has(key)) this.hidden.delete(key);
    else this.hidden.add(key);
    this.render();
  }

  hideAll() {
    this.allHidden = !this.allHidden;
    this.render();
    this.preview();
  }

  deleteObject(key = this.work?.history.now.active) {
    if (!key || !this.work) return;
    this.hidden.delete(key);
    this.pointed = null;
    this.work.history.remove(key);
    announce("Deleted.");
  }

  renameObject(key, name) {
    this.work.history.update(key, { name }, "renamed");
  }

  classifyObject(key, classKey) {
    this.work.history.update(key, { classKey }, "classified");
    this.classes.choose(classKey);
  }

  nameObject() {
    if (!this.work?.history.active) return;
    this.openPanel(true);
    $("object-name")?.select();
  }

  chooseClass(index) {
    const chosen = this.classes.all[index];
    if (!chosen) return;
    const active = this.work?.history.active;
    if (active && active.classKey !== chosen.key) this.classifyObject(active.key, chosen.key);
    else this.classes.choose(chosen.key);
    announce(`Class ${chosen.name}.`);
  }

  changeClass(key, changes) {
    const { name } = changes;
    if (name && this.classes.all.some((each) => each.key !== key && each.name === name)) {
      toast(`There is a class ${name} already.`);
      return;
    }
    this.classes.change(key, changes);
    this.work?.touch();
  }

  newClass() {
    this.openPanel(true);
    $("class-name").focus();
  }

  addClass(name) {
    if (!name.trim()) return;
    const added = this.classes.add(name);
    this.chooseClass(this.classes.all.findIndex((each) => each.key === added.key));
    $("canvas").focus({ preventScroll: true });
  }

  undo() {
    const what = this.work?.history.undo();
    if (what) announce(`Undone: ${what}.`);
  }

  redo() {
    const what = this.work?.history.redo();
    if (what) announce(`Done again: ${what}.`);
  }

  finish() {
    if (this.everything.on) {
      this.everything.leave();
      this.hover = null;
    } else this.work?.history.activate(null);
    this.render();
    this.preview();
  }

  escape() {
    if (this.boxStart || this.box) Object.assign(this, { boxStart: null, box: null });
    else if ($("panel").hasAttribute("data-open")) this.openPanel(false);
    else if (this.everything.on || this.work?.history.active) this.finish();
    else if (this.cross) this.cross = null;
    else if (this.tool !== "add") this.chooseTool("add");
    this.preview();
    this.render();
  }

  // ---------------------------------------------------------------- tools, view, keys

  get atCanvas() {
    return [$("canvas"), document.body].includes(document.activeElement);
  }

  get onPage() {
    return this.atCanvas;
  }

  chooseTool(tool) {
    this.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    this.gestures.refresh();
    this.removing = tool === "remove";
    this.preview();
    this.showHint();
  }

  /** At the keyboard's crosshair a tool acts at once; otherwise it is chosen for the pointer. */
  useTool(tool) {
    if (!this.cross) {
      this.chooseTool(tool);
    } else if (tool === "box") {
      if (this.boxStart) {
        const box = this.boxTo(this.cross);
        this.boxStart = null;
        this.drawBox(box, { done: true });
      } else {
        this.boxStart = this.cross;
        this.box = this.boxTo(this.cross);
        this.preview();
      }
    } else {
      this.click(this.cross, { remove: tool === "remove", select: false });
    }
  }

  boxTo([x, y]) {
    const [startX, startY] = this.boxStart;
    return [
      Math.min(startX, x), Math.min(startY, y), Math.max(startX, x) + 1, Math.max(startY, y) + 1,
    ];
  }

  moveCross(x, y, distance) {
    if (!this.photo?.picture) return;
    const { width, height } = this.photo;
    const start = this.cross ?? this.pointer ?? [width >> 1, height >> 1];
    const step = this.cross ? Math.max(1, Math.round(distance / this.view.scale)) : 0;
    this.cross = [
      Math.max(0, Math.min(width - 1, start[0] + x * step)),
      Math.max(0, Math.min(height - 1, start[1] + y * step)),
    ];
    if (this.boxStart) this.box = this.boxTo(this.cross);
    this.view.reveal(this.cross);
    announce(`${this.cross[0]}, ${this.cross[1]}`);
    this.preview();
    this.view.invalidate();
    this.showHint();
  }

  zoom(factor) {
    const place = $("canvas").getBoundingClientRect();
    const spot = this.cross ?? this.pointer;
    if (spot) {
      const [x, y] = this.view.toWindow(spot);
      this.view.zoom(factor, x - place.left, y - place.top);
    } else this.view.zoom(factor);
    this.followMouse();
  }

  fit() {
    this.view.fit();
    this.followMouse();
  }

  pan(x, y) {
    this.view.pan(-80 * x, -80 * y);
    this.followMouse();
  }

  changeOpacity(step) {
    const value = Math.max(0, Math.min(100, Number($("opacity").value) + step));
    $("opacity").value = value;
    this.showOpacity();
  }

  showOpacity() {
    $("opacity-value").textContent = `${$("opacity").value} %`;
    settings.set("opacity", Number($("opacity").value));
    this.view.invalidate();
  }

  openHelp() {
    $("help-dialog").showModal();
  }

  openPanel(open) {
    $("panel").toggleAttribute("data-open", open);
    $("panel-toggle").setAttribute("aria-expanded", String(open));
  }

  openDownloads() {
    if (!this.photo?.ready) return;
    const { active, objects } = this.work.history;
    if (!objects.length && !this.folder?.labelling) {
      toast("There is no object to download yet.");
      return;
    }
    $("cutout-text").textContent = active
      ? `${titleOf(active, objects, this.classes)} on a transparent background`
      : "All objects on a transparent background; choose one to have it alone";
    for (const button of document.querySelectorAll("[data-download]")) {
      button.disabled = objects.length === 0;
    }
    $("download-dialog").showModal();
  }

  async downloadAs(kind) {
    const { photo, classes } = this;
    const { objects, active } = this.work.history;
    const stem = photo.name.split("/").pop().replace(/\.[^.]+$/, "");
    $("download-dialog").close();
    if (kind === "coco") {
      download(cocoOf(photo, objects, classes), `${stem}.coco.json`, "application/json");
    } else if (kind === "yolo") {
      download(yoloOf(photo, objects, classes), `${stem}.txt`);
      const order = classes.all.map((each, index) => `${index} ${each.name}`).join(", ");
      toast(`Classes are numbered in the order of the panel: ${order}.`);
    } else if (kind === "png") {
      download(await labelMapOf(photo, objects), `${stem}.png`);
    } else {
      const masks = (active ? [active] : objects).map(({ mask }) => mask);
      const cut = await cutoutOf(photo.picture, photo, masks);
      if (cut) download(cut, `${stem}.cutout.png`);
      else toast("There is nothing to cut out: the masks are empty.");
    }
  }

  async downloadFolder() {
    $("download-dialog").close();
    try {
      await this.work?.save();
      download(await this.api.wholeFile(), "annotations.json");
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  wireButtons() {
    const on = (id, run) => $(id).addEventListener("click", run);
    on("previous", () => this.stepPhoto(-1));
    on("next", () => this.stepPhoto(1));
    on("undo", () => this.undo());
    on("redo", () => this.redo());
    on("undo-phone", () => this.undo());
    on("choose", () => this.chooseFile());
    on("welcome-choose", () => this.chooseFile());
    on("download", () => this.openDownloads());
    on("help", () => this.openHelp());
    on("everything", () => this.toggleEverything());
    on("zoom-in", () => this.view.zoom(1.25));
    on("zoom-out", () => this.view.zoom(1 / 1.25));
    on("zoom-fit", () => this.fit());
    on("done", () => this.finish());
    on("keep-all", () => this.keepAll());
    on("hide-all", () => this.hideAll());
    on("panel-toggle", () => this.openPanel(!$("panel").hasAttribute("data-open")));
    on("panel-close", () => this.openPanel(false));
    on("download-folder", () => this.downloadFolder());
    on("failure-retry", () => this.reopen());
    on("failure-next", () => this.stepPhoto(1));
    on("banner-retry", () => this.tryAgain());
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.chooseTool(button.dataset.tool));
    }
    // After a click with the mouse the keys belong to the photo again.
    const floating = ".tools button, .bar button, .zoom button, .finish button";
    for (const button of document.querySelectorAll(floating)) {
      button.addEventListener("click", (event) => {
        if (event.detail > 0) $("canvas").focus({ preventScroll: true });
      });
    }
    for (const button of document.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => this.downloadAs(button.dataset.download));
    }
    $("class-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.addClass($("class-name").value);
      $("class-name").value = "";
    });
    $("class-name").addEventListener("keydown", (event) => {
      if (event.key === "Escape") $("canvas").focus({ preventScroll: true });
    });
    $("opacity").value = settings.get("opacity", 40);
    $("opacity").addEventListener("input", () => this.showOpacity());
    this.showOpacity();
    for (const [id, otherwise] of [["by-object", false], ["one-click", false], ["preview", true]]) {
      $(id).checked = settings.get(id, otherwise);
      $(id).addEventListener("change", () => {
        settings.set(id, $(id).checked);
        this.preview();
        this.render();
      });
    }
    // A photo outside the panel ends a look into it on a phone.
    $("canvas").addEventListener("pointerdown", () => this.openPanel(false));
  }

  setInsets() {
    this.view.insets = innerWidth <= 800
      ? { top: 12, right: 12, bottom: 122, left: 12 }
      : { top: 22, right: 22, bottom: 62, left: 96 };
    if (this.view.fitted) this.view.fit();
  }

  // ---------------------------------------------------------------- what is shown

  onWork(work, what) {
    if (what === "saved") {
      this.channel?.postMessage(work.storeKey);
      const index = this.photos.findIndex(({ name }) => name === work.name);
      if (index >= 0 && this.folder?.labelling) {
        this.photos[index].objects = work.base.length;
        this.strip.count(index, work.name, work.base.length);
      }
    } else if (what !== "document" && what !== "state" && work === this.work) {
      toast(what);
    }
    this.render();
  }

  colourOf(object) {
    if ($("by-object").checked) {
      return PALETTE[this.work.history.objects.indexOf(object) % PALETTE.length];
    }
    return this.classes.get(object.classKey)?.colour ?? PALETTE[0];
  }

  /** Show the state once, however many changes a turn of the event loop made. */
  render() {
    if (this.renderPending) return;
    this.renderPending = true;
    queueMicrotask(() => {
      this.renderPending = false;
      this.show();
    });
  }

  show() {
    const history = this.work?.history ?? { objects: [], active: null, past: [], future: [] };
    showClasses(this.classes, (history.active
      ? this.classes.get(history.active.classKey) : this.classes.current)?.key, this);
    showObjects({
      objects: history.objects,
      active: history.active,
      classes: this.classes,
      hidden: this.hidden,
      colourOf: (object) => this.colourOf(object),
      app: this,
    });
    $("photo-name").textContent = this.photo?.name ?? "";
    $("photo-count").textContent = this.index >= 0
      ? `${this.index + 1} of ${this.photos.length}` : "";
    $("photo-nav").hidden = !this.photo;
    $("previous").disabled = this.index <= 0;
    $("next").disabled = this.index < 0 || this.index + 1 >= this.photos.length;
    for (const id of ["undo", "undo-phone"]) $(id).disabled = !history.past.length;
    $("redo").disabled = !history.future.length;
    $("download").disabled = !this.photo?.ready;
    $("everything").setAttribute("aria-pressed", String(this.everything.on));
    $("stage").toggleAttribute("data-photo", Boolean(this.photo));
    $("stage").toggleAttribute("data-everything", this.everything.on);
    $("finish").hidden = !(history.active || this.everything.on);
    $("keep-all").hidden = !this.everything.on || !this.everything.candidates.length;
    $("hide-all").setAttribute("aria-pressed", String(this.allHidden));
    $("hide-all").querySelector("use").setAttribute(
      "href", this.allHidden ? "#i-eye-off" : "#i-eye",
    );
    const aside = this.work?.keptAside ?? 0;
    $("kept-aside").hidden = !aside;
    $("kept-aside").textContent = `${aside === 1 ? "One annotation" : `${aside} annotations`} of ` +
      "this photo cannot be drawn here (boxes without a mask, crowds). They are kept in the file.";
    this.showState();
    this.showHint();
    this.view.invalidate();
  }

  /** Whether the work is saved, and what is wrong if not. */
  showState() {
    const order = ["refused", "offline", "saving", "dirty", "clean"];
    const states = [...this.works.values()].filter((work) => work.api).map((work) => work.state);
    const worst = order.find((state) => states.includes(state)) ?? "none";
    const words = {
      refused: "Not saved", offline: "Not saved yet", saving: "Saving…", dirty: "Saving…",
      clean: "Saved", none: "",
    };
    $("save-state").dataset.state = worst;
    if ($("save-state").textContent !== words[worst]) {
      $("save-state").textContent = words[worst];
    }
    const troubled = [...this.works.values()].find((work) => work.state === worst && work.problem);
    const problem = troubled?.problem ?? this.lost;
    const text = problem && (worst === "refused"
      ? `${troubled.name} is not saved: ${problem} Your work is kept in this browser.`
      : `${problem} Your work is kept in this browser, and this page tries again by itself.`);
    $("banner").hidden = !problem;
    if (problem && $("banner-text").textContent !== text) $("banner-text").textContent = text;
  }

  showZoom() {
    $("zoom-fit").textContent = `${Math.round(100 * this.view.scale)} %`;
  }

  showHint() {
    const hint = this.hintText();
    if (this.hintShown === hint) return;
    this.hintShown = hint;
    // Words in square brackets are keys.
    $("hint").replaceChildren(...hint.split(/\[|\](?=[^\]]*)/).map((part, index) =>
      (index % 2 ? Object.assign(document.createElement("kbd"), { textContent: part }) : part)));
  }

  hintText() {
    if (!this.photo || !$("failure").hidden) return "";
    if (!this.photo.ready) {
      const seconds = this.progress.seconds;
      return `Preparing the photo … ${seconds.toFixed(1)} s${this.photo.picture
        ? ". You can click already." : ""}`;
    }
    if (this.everything.searching) {
      return `Looking for everything … ${Math.round(100 * this.everything.share)} %`;
    }
    const fingers = touch.matches;
    if (this.everything.on) {
      return fingers ? "Tap what you want to keep"
        : "Click what you want to keep · [Shift E] keeps all · [Esc] ends";
    }
    if (this.boxStart) return "Arrows stretch the box · [B] ends it · [Esc] drops it";
    if (this.cross) return "Arrows move · [A] adds · [R] takes away · [B] begins a box";
    if (this.tool === "hand") return "Drag moves the photo";
    if (this.tool === "box") return "Drag a box around an object";
    if (this.tool === "remove") {
      return `${fingers ? "Tap" : "Click"} what does not belong to the object`;
    }
    if (this.work?.history.active) {
      return fingers ? "Tap adds · long press takes away · Done ends"
        : "Click adds · [Shift] click takes away · [Enter] ends";
    }
    return fingers ? "Tap an object"
      : "Click an object or drag a box · [E] outlines everything · [?] help";
  }

  /** What lies on the photo; the view draws it. */
  scene() {
    const shapes = [];
    const marks = [];
    const history = this.work?.history;
    if (!history || this.allHidden) {
      return { shapes, marks, dim: 0, box: this.box, cross: this.cross };
    }
    const opacity = Number($("opacity").value) / 100;
    const { active } = history;
    if (this.everything.on) {
      this.everything.candidates.forEach(({ mask, key }, index) => {
        if (key && history.objects.some((each) => each.key === key)) return;
        const colour = PALETTE[index % PALETTE.length];
        shapes.push({ mask, fill: colour, stroke: colour, opacity: 0.14, width: 1.25 });
      });
    }
    // The smaller ones on top, so that none hides another.
    for (const object of [...history.objects].sort((a, b) => areaOf(b.mask) - areaOf(a.mask))) {
      if (this.hidden.has(object.key)) continue;
      const colour = this.colourOf(object);
      const strong = object.key === this.pointed || object === active;
      const faded = active && !strong ? 0.55 : 1;
      // The preview of a changed mask lies over the mask as it is.
      const replaced = object === active && this.hover ? 0.35 : 1;
      shapes.push({
        mask: object.mask,
        fill: colour,
        stroke: colour,
        opacity: opacity * faded * replaced + (object.key === this.pointed ? 0.2 : 0),
        width: strong ? 2.75 : 1.75,
      });
    }
    if (this.hover) {
      const { mask, remove } = this.hover;
      const colour = remove ? "#ff8f8f" : active && !$("one-click").checked
        ? this.colourOf(active) : this.classes.current?.colour ?? PALETTE[0];
      shapes.push({
        mask, fill: colour, stroke: "#ffffff", opacity: 0.32, width: 1.5, dashed: true,
      });
    }
    if (active?.prompts && !this.everything.on) {
      const { points, labels } = active.prompts;
      points.forEach((point, index) =>
        marks.push({ point, label: labels[index], colour: this.colourOf(active) }));
    }
    for (const { point, label } of this.waiting.filter((each) => each.point)) {
      marks.push({ point, label, colour: "#ffffff", waiting: true });
    }
    const pendingBox = this.waiting.find((each) => each.box)?.box;
    return {
      shapes,
      marks,
      dim: this.everything.on ? 0.35 : 0,
      box: this.box ?? pendingBox ?? (this.hover ? null : active?.prompts?.box ?? null),
      cross: this.cross,
    };
  }
}

/** A Blob as what the canvas can draw. */
async function decode(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Error("This browser cannot show the file: it is no image, damaged, or of a format " +
      "that only the server reads. JPEG, PNG and WebP are shown everywhere.");
  }
}

const app = new App();
globalThis.samfast = app; // for the curious, and for the tests
app.start().catch((error) => {
  app.showFailure(error.message, { retry: false, title: "This page cannot begin" });
});
