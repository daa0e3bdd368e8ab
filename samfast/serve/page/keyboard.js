// Keys: what each does is said once, for the page and for its help.

/**
 * keys   as shown in the help, "Ctrl" being Cmd on a Mac; the first ones are matched
 * match  called with the event
 */
function binding(group, text, keys, match, run) {
  return { group, text, keys, match, run };
}

// AltGr, with which some keyboards write brackets, counts as Ctrl and Alt.
const plain = (event) =>
  event.getModifierState("AltGraph") || (!event.ctrlKey && !event.metaKey && !event.altKey);
const command = (event) => (event.ctrlKey || event.metaKey) && !event.altKey;
const letter = (wanted) => (event) =>
  plain(event) && !event.shiftKey && event.key.toLowerCase() === wanted;
const named = (...names) => (event) => plain(event) && names.includes(event.key);
const ARROWS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};

/** The bindings that call the parts of `app`. */
export function bindings(app) {
  const label = "Label";
  const objects = "Objects and classes";
  const sight = "View";
  const photos = "Photos and files";
  return [
    binding(label, "Add: at the crosshair, or by clicks", ["A"], letter("a"),
      () => app.tools.use("add")),
    binding(label, "Remove: at the crosshair, or by clicks", ["R"], letter("r"),
      () => app.tools.use("remove")),
    binding(label, "Box: at the crosshair, or by dragging", ["B"], letter("b"),
      () => app.tools.use("box")),
    binding(label, "Move the crosshair", ["←", "→"],
      (event) => plain(event) && !event.shiftKey && event.key in ARROWS && app.tools.atCanvas,
      (event) => app.tools.moveCross(...ARROWS[event.key], 4)),
    binding(label, "Move the crosshair far", ["Shift", "→"],
      (event) => plain(event) && event.shiftKey && event.key in ARROWS && app.tools.atCanvas,
      (event) => app.tools.moveCross(...ARROWS[event.key], 40)),
    binding(label, "Smaller or larger mask", ["[", "]"], named("[", "]"),
      (event) => app.labels.resizeMask(event.key === "[" ? -1 : 1)),
    binding(label, "Outline everything", ["E"], letter("e"),
      () => app.everything.toggle()),
    binding(label, "Keep all outlines", ["Shift", "E"],
      (event) => plain(event) && event.shiftKey && event.key === "E",
      () => app.everything.keepAll()),
    binding(label, "Finish the object", ["Enter"],
      (event) => named("Enter")(event) && app.tools.atCanvas, () => app.tools.finish()),
    binding(label, "Leave what was begun", ["Esc"], named("Escape"),
      () => app.tools.escape()),
    binding(label, "Undo", ["Ctrl", "Z"],
      (event) => command(event) && !event.shiftKey && event.key.toLowerCase() === "z",
      () => app.labels.undo()),
    binding(label, "Redo", ["Ctrl", "Shift", "Z"],
      (event) => command(event) && (event.key.toLowerCase() === "y" ||
        (event.shiftKey && event.key.toLowerCase() === "z")),
      () => app.labels.redo()),
    binding(objects, "Class of this and the next objects", ["1", "…", "9"],
      (event) => plain(event) && /^[1-9]$/.test(event.key),
      (event) => app.labels.chooseClass(Number(event.key) - 1)),
    binding(objects, "Make a class", ["C"], letter("c"), () => app.labels.newClass()),
    binding(objects, "Next or previous object", ["J", "K"],
      (event) => letter("j")(event) || letter("k")(event),
      (event) => app.labels.stepObject(event.key.toLowerCase() === "j" ? 1 : -1)),
    binding(objects, "Name the object", ["F2"], named("F2"), () => app.labels.nameObject()),
    binding(objects, "Delete the object", ["Del"], named("Delete", "Backspace"),
      () => app.labels.deleteObject()),
    binding(sight, "Zoom", ["+", "−"], named("+", "=", "-"),
      (event) => app.tools.zoom(event.key === "-" ? 1 / 1.25 : 1.25)),
    binding(sight, "Fit the photo", ["0"], named("0"), () => app.tools.fit()),
    binding(sight, "Move the photo", ["Alt", "→"],
      (event) => event.altKey && !event.ctrlKey && event.key in ARROWS,
      (event) => app.tools.pan(...ARROWS[event.key])),
    binding(sight, "Move it by dragging", ["V"], letter("v"),
      () => app.tools.choose("hand")),
    binding(sight, "Less or more opaque", ["O", "Shift O"],
      (event) => plain(event) && event.key.toLowerCase() === "o",
      (event) => app.controls.changeOpacity(event.shiftKey ? 10 : -10)),
    binding(sight, "Hide or show the masks", ["H"], letter("h"), () => app.labels.hideAll()),
    binding(photos, "Next or previous photo", ["N", "P"],
      (event) => letter("n")(event) || letter("p")(event),
      (event) => app.photos.step(event.key.toLowerCase() === "n" ? 1 : -1)),
    binding(photos, "Download", ["D"], letter("d"), () => app.downloads.open()),
    binding(photos, "This help", ["?"], named("?"), () => app.controls.openHelp()),
  ];
}

/** What mouse and fingers do; the help shows it beside the keys. */
export const POINTER_HELP = [
  ["Mouse", [
    ["Add to the object, or begin one", ["Click"]],
    ["Take away from the object", ["Shift", "Click"]],
    ["Draw a box around an object", ["Drag"]],
    ["Choose the object below", ["Ctrl", "Click"]],
    ["Zoom", ["Wheel"]],
    ["Move the photo", ["Space", "Drag"]],
  ]],
  ["Fingers", [
    ["Add", ["Tap"]],
    ["Take away", ["Long press"]],
    ["Move the photo", ["Drag"]],
    ["Zoom", ["Two fingers"]],
  ]],
];

/** Run the binding that matches each key that is pressed outside fields and dialogs. */
export function watchKeys(all, { setSpace }) {
  addEventListener("pointerdown", () => delete document.body.dataset.tabbing, true);
  addEventListener("keydown", (event) => {
    if (event.key === "Tab") document.body.dataset.tabbing = "";
    if (document.querySelector("dialog[open]")) return;
    const fields = "input:not([type=checkbox], [type=range], [type=color]), select, textarea";
    if (event.target.closest(fields)) return;
    if (event.key === " " && !event.target.closest("button, a, input")) {
      event.preventDefault();
      setSpace(true);
      return;
    }
    // Ranges take arrows and digits themselves.
    if (event.target.closest("[type=range]") && event.key.startsWith("Arrow")) return;
    const hit = all.find((each) => each.match(event));
    if (!hit) return;
    event.preventDefault();
    hit.run(event);
  });
  addEventListener("keyup", (event) => event.key === " " && setSpace(false));
  addEventListener("blur", () => setSpace(false));
}
