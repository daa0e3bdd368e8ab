// The page: its parts, each of which knows the others through the `App`.

import { Api } from "./api.js";
import { Classes } from "./classes.js";
import { Clicks } from "./clicks.js";
import { Controls } from "./controls.js";
import { Downloads } from "./downloads.js";
import { DroppedFiles } from "./dropped_files.js";
import { Everything } from "./everything.js";
import { watchPointer } from "./gestures.js";
import { bindings, watchKeys } from "./keyboard.js";
import { Labels } from "./labels.js";
import { overlayOf } from "./overlay.js";
import { $, askToken, fillHelp, wireDialogs } from "./panels.js";
import { Patience } from "./patience.js";
import { Photos } from "./photos.js";
import { Progress } from "./progress.js";
import { Prompter } from "./prompter.js";
import { Status } from "./status.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";
import { Works } from "./works.js";

class App {
  constructor() {
    this.folder = null; // {name, key, photos, labelling}, or null where the server has none
    this.photo = null; // the open one: {name, width, height, picture, ready}
    this.work = null; // the PhotoWork on it
    this.api = new Api(askToken);
    this.patience = new Patience(() => this.status.showState());
    this.classes = new Classes(() => this.render());
    this.works = new Works(this);
    this.photos = new Photos(this);
    this.files = new DroppedFiles(this);
    this.prompter = new Prompter(this.api);
    this.clicks = new Clicks(this);
    this.everything = new Everything(this);
    this.labels = new Labels(this);
    this.tools = new Tools(this);
    this.downloads = new Downloads(this);
    this.controls = new Controls(this);
    this.view = new View($("canvas"), () => overlayOf(this));
    this.progress = new Progress(() => this.status.showHint());
    this.status = new Status(this);
    this.renderPending = false;
  }

  async start() {
    this.bindings = bindings(this);
    fillHelp(this.bindings);
    wireDialogs();
    this.controls.watch();
    this.gestures = watchPointer(this.view, () => this.tools.chosen, {
      hover: (pixel, how) => this.clicks.pointTo(pixel, how),
      click: (pixel, how) => this.clicks.click(pixel, how),
      box: (box, how) => this.clicks.drawBox(box, how),
      held: () => {},
    });
    watchKeys(this.bindings, this.gestures);
    this.view.onFrame = () => this.status.showZoom();
    this.files.watch();
    this.works.watchTabs();
    addEventListener("online", () => this.tryAgain());
    addEventListener("hashchange", () => this.photos.openFromHash());
    const session = await this.patience.untilAnswered(() => this.api.session());
    $("welcome-model").textContent = `${session.model} on ${session.device}`;
    // Four times fewer clicks: a CPU answers them in seconds, and large objects are found alike.
    if (session.device === "cpu") this.everything.pointsPerSide = 16;
    this.folder = session.folder;
    if (this.folder) await this.photos.openFolder();
    else await this.files.openLast();
    this.render();
  }

  /** Ask a server that was lost again now, and save what waits for it. */
  tryAgain() {
    this.patience.tryAgain();
    this.works.saveAll();
  }

  /** Show the state once, however many changes a turn of the event loop made. */
  render() {
    if (this.renderPending) return;
    this.renderPending = true;
    queueMicrotask(() => {
      this.renderPending = false;
      this.status.show();
    });
  }
}

const app = new App();
globalThis.samfast = app; // for the curious, and for the tests
app.start().catch((error) => {
  app.photos.showFailure(error.message, { retry: false, title: "This page cannot begin" });
});
