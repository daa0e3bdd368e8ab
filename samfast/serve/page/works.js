// The work on each photo that was opened, until it is saved.

import { toast } from "./panels.js";
import { PhotoWork } from "./saving.js";
import { kept } from "./storage.js";

const WORKS_KEPT = 12;
const STATES = ["refused", "offline", "saving", "dirty", "clean"]; // the worst first

export class Works {
  constructor(app) {
    this.app = app;
    this.all = new Map(); // key in this browser's storage -> PhotoWork
    this.channel = new BroadcastChannel("samfast");
  }

  /** Look whether other tabs have saved the photo when they say so, or this one is seen again. */
  watchTabs() {
    this.channel.onmessage = ({ data }) => {
      if (this.app.work?.storeKey === data) this.app.work.refresh();
    };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.app.work?.save();
      else this.app.work?.refresh();
    });
  }

  get scope() {
    return this.app.folder ? `folder ${this.app.folder.key}` : "local";
  }

  /** The work on a photo of the folder, or on a file that was dropped, its `blob`. */
  of(name, blob, key = `${this.scope}\n${name}`) {
    return new PhotoWork({
      name,
      storeKey: key,
      api: this.app.folder?.labelling && !blob ? this.app.api : null,
      classes: this.app.classes,
      blob,
      notify: (work, what) => this.#changed(work, what),
    });
  }

  /** Go to work on a photo: on what is known of it, or on what its file or this browser has. */
  take(name, blob, key) {
    const work = this.all.get(key) ?? this.of(name, blob, key);
    this.app.work = work;
    this.all.delete(key); // and to the end: the oldest are forgotten first
    this.all.set(key, work);
    this.#forget();
    return work;
  }

  #forget() {
    for (const [key, work] of this.all) {
      if (this.all.size <= WORKS_KEPT) break;
      if (work !== this.app.work && work.state === "clean") this.all.delete(key);
    }
  }

  saveAll() {
    for (const work of this.all.values()) work.save();
  }

  /** Save what an earlier visit could not, of photos other than the one that is opened. */
  async saveLeftovers() {
    const keys = await kept.keys().catch(() => []);
    for (const key of keys.filter((each) => each.startsWith(`${this.scope}\n`))) {
      const name = key.slice(this.scope.length + 1);
      if (!this.app.photos.all.some((each) => each.name === name) || this.all.has(key)) continue;
      const work = this.of(name, null);
      this.all.set(key, work);
      await work.load().catch(() => this.all.delete(key));
    }
  }

  /** The state farthest from being saved, and what is wrong: {state, name, problem}. */
  get worst() {
    const works = [...this.all.values()];
    const states = works.filter(({ api }) => api).map(({ state }) => state);
    const worst = STATES.find((each) => states.includes(each)) ?? "none";
    const troubled = works.find(({ state, problem }) => state === worst && problem);
    return { state: worst, name: troubled?.name, problem: troubled?.problem };
  }

  #changed(work, what) {
    const { app } = this;
    if (what === "saved") {
      this.channel.postMessage(work.storeKey);
      if (app.folder?.labelling) app.photos.count(work.name, work.base.length);
    } else if (what !== "document" && what !== "state" && work === app.work) {
      toast(what);
    }
    app.render();
  }
}
