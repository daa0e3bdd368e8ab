// What lies on the photo: masks, clicks, boxes and the crosshair.

import { PALETTE } from "./classes.js";
import { $ } from "./panels.js";
import { areaOf } from "./rle.js";

/** {shapes, marks, dim, box, cross}, as `View.draw` takes them. */
export function overlayOf(app) {
  const shapes = [];
  const marks = [];
  const { clicks, labels, everything } = app;
  const history = app.work?.history;
  if (!history || labels.allHidden) {
    return { shapes, marks, dim: 0, box: clicks.box, cross: app.tools.cross };
  }
  const opacity = Number($("opacity").value) / 100;
  const { active } = history;
  if (everything.on) {
    everything.candidates.forEach(({ mask, key }, index) => {
      if (key && history.objects.some((each) => each.key === key)) return;
      const colour = PALETTE[index % PALETTE.length];
      shapes.push({ mask, fill: colour, stroke: colour, opacity: 0.14, width: 1.25 });
    });
  }
  // The smaller ones on top, so that none hides another.
  for (const object of [...history.objects].sort((a, b) => areaOf(b.mask) - areaOf(a.mask))) {
    if (labels.hidden.has(object.key)) continue;
    const colour = labels.colourOf(object);
    const strong = object.key === labels.pointed || object === active;
    const faded = active && !strong ? 0.55 : 1;
    // The preview of a changed mask lies over the mask as it is.
    const replaced = object === active && clicks.hover ? 0.35 : 1;
    shapes.push({
      mask: object.mask,
      fill: colour,
      stroke: colour,
      opacity: opacity * faded * replaced + (object.key === labels.pointed ? 0.2 : 0),
      width: strong ? 2.75 : 1.75,
    });
  }
  if (clicks.hover) {
    const { mask, remove } = clicks.hover;
    const colour = remove ? "#ff8f8f" : active && !$("one-click").checked
      ? labels.colourOf(active) : app.classes.current?.colour ?? PALETTE[0];
    shapes.push({
      mask, fill: colour, stroke: "#ffffff", opacity: 0.32, width: 1.5, dashed: true,
    });
  }
  if (active?.prompts && !everything.on) {
    const { prompts } = active;
    prompts.points.forEach((point, index) =>
      marks.push({ point, label: prompts.labels[index], colour: labels.colourOf(active) }));
  }
  for (const { point, label } of clicks.waiting.filter((each) => each.point)) {
    marks.push({ point, label, colour: "#ffffff", waiting: true });
  }
  const pendingBox = clicks.waiting.find((each) => each.box)?.box;
  return {
    shapes,
    marks,
    dim: everything.on ? 0.35 : 0,
    box: clicks.box ?? pendingBox ?? (clicks.hover ? null : active?.prompts?.box ?? null),
    cross: app.tools.cross,
  };
}
