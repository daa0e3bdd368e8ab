// Files that are dropped on the page, pasted or chosen, and are none of the folder.

import { $, toast } from "./panels.js";
import { kept, settings } from "./storage.js";

const FILES_KEPT = 20;

export class DroppedFiles {
  constructor(app) {
    this.app = app;
  }

  /** Take what is dropped, pasted or chosen. */
  watch() {
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
      this.#take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => this.#take(event.clipboardData?.files[0]));
    $("file").addEventListener("change", () => {
      this.#take($("file").files[0]);
      $("file").value = "";
    });
  }

  choose() {
    if (this.app.folder?.labelling) return;
    $("file").click();
  }

  #take(file) {
    if (!file) return;
    const { folder, photos } = this.app;
    if (folder?.labelling) {
      toast(`This page labels the folder ${folder.name}: copy the photo there, and reload.`);
      return;
    }
    if (folder) photos.strip.choose(-1);
    this.open(file, file.name);
  }

  /** Open the file that was open last, or ask for one. */
  async openLast() {
    const last = settings.get("lastLocal", null);
    const draft = last && (await kept.get(last).catch(() => null));
    if (draft?.blob) await this.open(draft.blob, draft.name, last);
    else $("welcome").hidden = false;
  }

  open(blob, name, key = `local\n${name}\n${blob.size}\n${blob.lastModified ?? 0}`) {
    this.app.photos.index = -1;
    settings.set("lastLocal", key);
    this.#forgetOldest();
    return this.app.photos.open({
      name, key, blob, fetchPicture: async () => blob, encode: () => this.app.api.encode(blob),
    });
  }

  async #forgetOldest() {
    const keys = (await kept.keys().catch(() => [])).filter((each) => each.startsWith("local\n"));
    if (keys.length <= FILES_KEPT) return;
    const times = new Map();
    for (const key of keys) times.set(key, (await kept.get(key))?.time ?? 0);
    keys.sort((one, other) => times.get(other) - times.get(one));
    for (const key of keys.slice(FILES_KEPT)) await kept.remove(key);
  }
}
