// The panel at the side, dialogs and messages.

import { POINTER_HELP } from "./keyboard.js";
import { areaOf } from "./rle.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; keys with a dash or in `data` become attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) {
      if (value !== null && value !== false) element.setAttribute(name, value);
    } else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Show a sentence for some seconds; screen readers read it out. */
export function toast(text, kind = "") {
  const element = make("div", { className: "toast", textContent: text, "data-kind": kind });
  $("toasts").append(element);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  setTimeout(() => element.remove(), Math.max(4000, text.length * 80));
}

/** Tell screen readers what the canvas shows. */
export function announce(text) {
  $("announce").textContent = text;
}

export function fillHelp(bindings) {
  const groups = new Map();
  for (const [group, rows] of POINTER_HELP) groups.set(group, rows);
  for (const { group, text, keys } of bindings) {
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([text, keys]);
  }
  const sections = [...groups].map(([group, rows]) => make(
    "section", {},
    make("h3", { textContent: group }),
    make("dl", {}, ...rows.flatMap(([text, keys]) => [
      make("dt", { textContent: text }),
      make("dd", {}, ...keys.map((key) => make("kbd", { textContent: key }))),
    ])),
  ));
  $("help-content").replaceChildren(...sections);
}

/** Have dialogs close by their cross and by a click beside them. */
export function wireDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

/** Ask for the token of the server; null where the user gives none. */
export function askToken(wrong) {
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

/** What the user calls an object: its name, or its class and its number among that class. */
export function titleOf(object, objects, classes) {
  if (object.name) return object.name;
  const kind = classes.get(object.classKey)?.name ?? "object";
  const alike = objects.filter((each) => each.classKey === object.classKey && !each.name);
  return alike.length > 1 ? `${kind} ${alike.indexOf(object) + 1}` : kind;
}

/** The list of classes; `labels` is told what is chosen and changed. */
export function showClasses(classes, currentKey, labels) {
  const list = $("classes");
  // A field that is being typed in is left alone.
  if (list.contains(document.activeElement) && document.activeElement.matches(".rename")) return;
  const shown = JSON.stringify(classes.all.map(({ key, name, colour }) => [key, name, colour]));
  // Rows that stay are changed in place: a double click needs one button for both clicks.
  if (list.dataset.shown !== shown) {
    list.dataset.shown = shown;
    const focused = focusedKey(list);
    list.replaceChildren(...classes.all.map((each, index) => classRow(each, index, labels)));
    restoreFocus(list, focused);
  }
  for (const row of list.children) {
    const current = row.dataset.key === currentKey;
    row.toggleAttribute("data-current", current);
    row.querySelector(".pick")?.setAttribute("aria-pressed", String(current));
  }
}

function classRow(each, index, labels) {
  const colour = make("input", {
    type: "color", value: each.colour, "aria-label": `Colour of ${each.name}`,
  });
  colour.addEventListener("change", () => labels.changeClass(each.key, { colour: colour.value }));
  const pick = make("button", {
    className: "pick", textContent: each.name, title: each.name, "data-key": each.key,
  });
  const rename = () => renameClass(pick, each, labels);
  pick.addEventListener("click", () => labels.chooseClass(index));
  pick.addEventListener("dblclick", rename);
  pick.addEventListener("keydown", (event) => {
    if (event.key !== "F2") return;
    event.preventDefault();
    event.stopPropagation();
    rename();
  });
  const pencil = make("button", {
    className: "icon small pencil", "aria-label": `Rename ${each.name}`, title: "Rename",
  }, icon("pencil"));
  pencil.addEventListener("click", rename);
  const item = make("li", { className: "class", "data-key": each.key }, colour, pick, pencil);
  if (index < 9) item.append(make("kbd", { textContent: index + 1, "aria-hidden": "true" }));
  return item;
}

function renameClass(button, { key, name }, labels) {
  const field = make("input", {
    className: "rename", value: name, maxLength: 80, "aria-label": `New name of ${name}`,
  });
  let over = false;
  const end = (take) => {
    if (over) return;
    over = true;
    const text = field.value.trim();
    field.replaceWith(button);
    if (take && text && text !== name) labels.changeClass(key, { name: text });
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") end(false);
  });
  field.addEventListener("blur", () => end(true));
  button.replaceWith(field);
  field.select();
}

/** The list of objects, the chosen one with its details. */
export function showObjects({ objects, active, classes, hidden, colourOf, labels }) {
  $("object-count").textContent = objects.length || "";
  $("panel-count").textContent = objects.length ? `Objects ${objects.length}` : "Objects";
  $("no-objects").hidden = objects.length > 0;
  const list = $("objects");
  if (list.contains(document.activeElement) && document.activeElement.matches("input")) {
    // Typing a name must not lose its field; the rest follows when it is left.
    const typed = document.activeElement.closest("li")?.dataset.key;
    if (typed === active?.key) return;
  }
  const focused = focusedKey(list);
  const rows = objects.map((object) => {
    const title = titleOf(object, objects, classes);
    const chosen = object.key === active?.key;
    const dot = make("span", { className: "dot" });
    dot.style.setProperty("--colour", colourOf(object));
    const share = (100 * areaOf(object.mask)) / (object.mask.width * object.mask.height);
    const pick = make(
      "button",
      { className: "pick", "aria-pressed": String(chosen), "data-key": object.key },
      dot,
      make("span", { className: "name", textContent: title }),
      make("span", {
        className: "measure", textContent: `${share < 1 ? share.toFixed(1) : Math.round(share)} %`,
        title: "Share of the photo",
      }),
    );
    pick.addEventListener("click", () => labels.chooseObject(chosen ? null : object.key));
    pick.addEventListener("pointerenter", () => labels.pointAt(object.key));
    pick.addEventListener("pointerleave", () => labels.pointAt(null));
    const isHidden = hidden.has(object.key);
    const eye = make("button", {
      className: "icon small", "aria-pressed": String(isHidden), "aria-label": `Hide ${title}`,
    }, icon(isHidden ? "eye-off" : "eye"));
    eye.addEventListener("click", () => labels.hideObject(object.key));
    const bin = make("button", {
      className: "icon small", "aria-label": `Delete ${title}`, title: "Delete (Del)",
    }, icon("trash"));
    bin.addEventListener("click", () => labels.deleteObject(object.key));
    const row = make("li", { className: "object", "data-key": object.key },
      make("div", { className: "object-head" }, pick, eye, bin));
    if (isHidden) row.dataset.hidden = "";
    if (chosen) {
      row.dataset.active = "";
      row.append(details(object, classes, labels));
    }
    return row;
  });
  list.replaceChildren(...rows);
  restoreFocus(list, focused);
  if (active) list.querySelector("[data-active]")?.scrollIntoView({ block: "nearest" });
}

function details(object, classes, labels) {
  const name = make("input", {
    id: "object-name", value: object.name, maxLength: 200, autocomplete: "off",
    placeholder: "none", enterKeyHint: "done",
  });
  name.addEventListener("change", () => labels.renameObject(object.key, name.value.trim()));
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") name.blur();
    if (event.key === "Escape") {
      name.value = object.name;
      name.blur();
    }
  });
  const kind = make("select", {}, ...classes.all.map((each) => make("option", {
    value: each.key, textContent: each.name, selected: each.key === object.classKey,
  })));
  kind.addEventListener("change", () => labels.classifyObject(object.key, kind.value));
  const more = make("div", { className: "object-more" },
    make("label", {}, "Class", kind),
    make("label", {}, "Name", name));
  if (labels.hasSiblings(object)) {
    const smaller = make("button", { textContent: "Smaller", title: "Smaller mask ([)" });
    const larger = make("button", { textContent: "Larger", title: "Larger mask (])" });
    smaller.addEventListener("click", () => labels.resizeMask(-1));
    larger.addEventListener("click", () => labels.resizeMask(1));
    smaller.disabled = !labels.canResize(object, -1);
    larger.disabled = !labels.canResize(object, 1);
    more.append(make("div", { className: "sizes" }, smaller, larger));
  }
  return more;
}

function focusedKey(list) {
  const element = document.activeElement;
  return list.contains(element) ? element.closest("[data-key]")?.dataset.key : undefined;
}

function restoreFocus(list, key) {
  if (key === undefined) return;
  const row = [...list.querySelectorAll(".pick")].find((each) => each.dataset.key === key);
  (row ?? list.querySelector(".pick"))?.focus({ preventScroll: true });
}
