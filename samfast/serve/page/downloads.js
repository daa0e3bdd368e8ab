// The dialog of downloads.

import { cocoOf, cutoutOf, download, labelMapOf, yoloOf } from "./exports.js";
import { $, titleOf, toast } from "./panels.js";

export class Downloads {
  constructor(app) {
    this.app = app;
  }

  open() {
    if (!this.app.photo?.ready) return;
    const { active, objects } = this.app.work.history;
    if (!objects.length && !this.app.folder?.labelling) {
      toast("There is no object to download yet.");
      return;
    }
    $("cutout-text").textContent = active
      ? `${titleOf(active, objects, this.app.classes)} on a transparent background`
      : "All objects on a transparent background; choose one to have it alone";
    for (const button of document.querySelectorAll("[data-download]")) {
      button.disabled = objects.length === 0;
    }
    $("download-dialog").showModal();
  }

  /** kind: coco, yolo, png or cutout. */
  async save(kind) {
    const { photo, classes } = this.app;
    const { objects, active } = this.app.work.history;
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

  async saveFolder() {
    $("download-dialog").close();
    try {
      await this.app.work?.save();
      download(await this.app.api.wholeFile(), "annotations.json");
    } catch (error) {
      toast(error.message, "bad");
    }
  }
}
