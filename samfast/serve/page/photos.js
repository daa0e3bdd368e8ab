// The photos of the folder, and the photo that is open.

import { $, announce, toast } from "./panels.js";
import { Strip } from "./strip.js";

const AHEAD = 2; // photos encoded before they are opened
const PICTURES_KEPT = 4;

export class Photos {
  constructor(app) {
    this.app = app;
    this.all = []; // {name, objects} of the folder
    this.index = -1; // of the photo that is open; -1 where it is none of the folder
    this.pictures = new Map();
    this.opening = null; // an AbortController
    this.ready = null; // resolves when the photo that is open can be clicked
    this.reopen = null;
    this.strip = null;
  }

  async openFolder() {
    const { app } = this;
    const { name, photos, labelling } = app.folder;
    document.title = `${name} · samfast`;
    this.all = photos;
    this.strip = new Strip(photos, app.api, (index) => this.openAt(index));
    $("photo-nav").hidden = false;
    $("choose").hidden = labelling;
    if (labelling) {
      $("download-folder").hidden = false;
      app.works.saveLeftovers();
    }
    if (photos.length === 0) {
      $("photo-nav").hidden = true;
      const title = "There is no photo here";
      this.showFailure("Copy photos to the folder, and reload.", { retry: false, title });
      return;
    }
    if (!this.openFromHash()) {
      const fresh = photos.findIndex(({ objects }) => !objects);
      await this.openAt(Math.max(0, fresh));
    }
  }

  /** Open the photo that the address names; false where it names none. */
  openFromHash() {
    const wanted = new URLSearchParams(location.hash.slice(1)).get("photo");
    const index = this.all.findIndex(({ name }) => name === wanted);
    if (index < 0 || index === this.index) return index >= 0;
    this.openAt(index);
    return true;
  }

  openAt(index) {
    const { app } = this;
    const photo = this.all[index];
    if (!photo) return Promise.resolve();
    this.index = index;
    history.replaceState(null, "", `#${new URLSearchParams({ photo: photo.name })}`);
    this.strip.choose(index);
    return this.open({
      name: photo.name,
      key: `${app.works.scope}\n${photo.name}`,
      blob: null,
      fetchPicture: (signal) => this.#pictureOf(photo.name, signal),
      encode: () => app.api.encode({ path: photo.name }),
    });
  }

  step(step) {
    const index = this.index + step;
    if (index < 0 || index >= this.all.length) {
      if (this.all.length) toast(`This is the ${step > 0 ? "last" : "first"} photo.`);
      return;
    }
    this.openAt(index);
  }

  /**
   * Show a photo and have the server encode it.
   *
   * key           of its work in this browser's storage
   * blob          the file, where it is none of the folder
   * fetchPicture  called with an AbortSignal; resolves to the photo as a Blob
   * encode        has the server encode it; resolves to {id, width, height}
   */
  async open({ name, key, blob, fetchPicture, encode }) {
    const { app } = this;
    this.opening?.abort();
    const controller = new AbortController();
    this.opening = controller;
    const { signal } = controller;
    this.#leave();
    const photo = { name, width: 0, height: 0, picture: null, ready: false };
    app.photo = photo;
    $("welcome").hidden = true;
    $("failure").hidden = true;
    this.reopen = () => this.open({ name, key, blob, fetchPicture, encode });
    const work = app.works.take(name, blob, key);
    app.render();
    app.progress.start();
    app.prompter.open(() => app.patience.untilAnswered(encode, signal));
    const image = app.prompter.image;
    const fetched = app.patience.untilAnswered(() => fetchPicture(signal), signal);
    const picture = fetched.then(decode);
    const loaded = work.loaded
      ? work.refresh()
      : app.patience.untilAnswered(() => work.load(), signal);
    this.ready = Promise.all([image, picture, loaded]);
    this.ready.catch(() => {});
    picture.then((bitmap) => {
      if (app.photo !== photo || photo.ready) return;
      this.#showPicture(photo, bitmap, bitmap);
    }, () => {});
    const [encoded, shown, saved] = await Promise.allSettled([image, picture, loaded]);
    if (app.photo !== photo) return;
    app.progress.stop(encoded.status === "fulfilled");
    // The server knows best what is wrong with a file.
    const failed = [encoded, shown, saved].find((each) => each.status === "rejected");
    if (failed) {
      const { message } = failed.reason;
      this.showFailure(message[0].toUpperCase() + message.slice(1), { retry: true });
      return;
    }
    if (blob) work.touch();
    this.#showPicture(photo, shown.value, encoded.value);
    photo.ready = true;
    announce(`${name} is ready. ${work.history.objects.length} objects.`);
    app.render();
    this.#prepareNext();
    app.clicks.followMouse();
  }

  /** Aborted when the photo that is open now is left. */
  get signal() {
    return this.opening.signal;
  }

  #showPicture(photo, bitmap, { width, height }) {
    const known = photo.picture && photo.width === width && photo.height === height;
    Object.assign(photo, { picture: bitmap, width, height });
    if (!known) this.app.view.show(bitmap, { width, height });
    $("canvas").setAttribute("aria-label", `${photo.name}, ${width} by ${height} pixels`);
  }

  #leave() {
    const { app } = this;
    app.work?.save();
    app.prompter.close();
    app.everything.leave();
    app.view.clear();
    app.photo?.picture?.close?.();
    app.patience.lost = null;
    app.clicks.forget();
    app.tools.forget();
    app.labels.forget();
    app.work?.history.activate(null);
    app.photo = null;
  }

  /** A photo of the folder, fetched once while it is near. */
  #pictureOf(name, signal) {
    let picture = this.pictures.get(name);
    if (!picture) {
      picture = this.app.api.photo(name, signal);
      this.pictures.set(name, picture);
      picture.catch(() => this.pictures.delete(name));
      if (this.pictures.size > PICTURES_KEPT) {
        this.pictures.delete(this.pictures.keys().next().value);
      }
    }
    return picture;
  }

  #prepareNext() {
    if (this.index < 0) return;
    const next = this.all.slice(this.index + 1, this.index + 1 + AHEAD).map(({ name }) => name);
    if (next.length === 0) return;
    this.app.api.prewarm(next);
    this.#pictureOf(next[0]).catch(() => {});
  }

  /** Show in the strip how many objects a photo has. */
  count(name, objects) {
    const index = this.all.findIndex((each) => each.name === name);
    if (index < 0) return;
    this.all[index].objects = objects;
    this.strip.count(index, name, objects);
  }

  /** Say in the place of the photo why there is none. */
  showFailure(text, { retry, title = "This photo cannot be used" }) {
    $("failure-title").textContent = title;
    this.app.prompter.close();
    this.app.view.clear();
    $("failure-text").textContent = text;
    $("failure-retry").hidden = !retry;
    $("failure-next").hidden = this.index < 0 || this.index + 1 >= this.all.length;
    $("failure").hidden = false;
    this.app.render();
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
