// The photo and the masks on the canvas: where they lie, and how they look.

import { exactPath, ringsOf, smoothPath } from "./outlines.js";
import { Viewport } from "./viewport.js";

const MIN_SCALE = 0.02;
const MAX_SCALE = 40;
const PIXELS_SHOWN_FROM = 5; // screen pixels per pixel from which corners are drawn as they are

const paths = new WeakMap();

function pathOf(mask, scale) {
  let entry = paths.get(mask);
  if (!entry) {
    const rings = ringsOf(mask);
    entry = { rings, exact: null, smooth: null };
    paths.set(mask, entry);
  }
  if (scale >= PIXELS_SHOWN_FROM) return (entry.exact ??= exactPath(entry.rings));
  return (entry.smooth ??= smoothPath(entry.rings));
}

export class View extends Viewport {
  /** scene: called to draw each frame; returns what lies on the photo (see `draw`). */
  constructor(canvas, scene) {
    super(canvas, canvas.getContext("2d"), MAX_SCALE);
    this.scene = scene;
    this.picture = null;
    this.insets = { top: 0, right: 0, bottom: 0, left: 0 };
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(resolution: 1dppx)").addEventListener("change", () => this.resize());
  }

  get least() {
    return MIN_SCALE;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.fitted) this.fit();
    this.draw(); // at once: a canvas that was resized is empty
  }

  show(picture, { width, height }) {
    this.picture = picture;
    this.size = { width, height };
    this.fit();
  }

  clear() {
    this.picture = null;
    this.invalidate();
  }

  /** The whole photo, as large as it fits. */
  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const { top, right, bottom, left } = this.insets;
    const { width, height } = this.size;
    if (!width || !clientWidth) return;
    const [roomX, roomY] = [clientWidth - left - right, clientHeight - top - bottom];
    this.scale = Math.max(MIN_SCALE, Math.min(roomX / width, roomY / height, 8));
    this.left = left + (roomX - width * this.scale) / 2;
    this.top = top + (roomY - height * this.scale) / 2;
    this.fitted = true;
    this.invalidate();
  }

  /** Move the photo so that its pixel [x, y] is in sight. */
  reveal([x, y]) {
    const { clientWidth, clientHeight } = this.canvas;
    const margin = 40;
    const [atX, atY] = [this.left + x * this.scale, this.top + y * this.scale];
    const moveX = Math.min(0, clientWidth - margin - atX) + Math.max(0, margin - atX);
    const moveY = Math.min(0, clientHeight - margin - atY) + Math.max(0, margin - atY);
    if (moveX || moveY) this.pan(moveX, moveY);
  }

  /**
   * Draw the picture and the scene: {shapes, dim, marks, box, cross}.
   *
   * shapes  {mask, fill, stroke, opacity, width, dashed} from bottom to top
   * dim     how far the photo below the shapes is darkened, 0 to 1
   * marks   clicks, {point, label, colour}
   * box     [x0, y0, x1, y1] or null
   * cross   the keyboard's crosshair [x, y] or null
   */
  draw() {
    this.pending = false;
    const { context, canvas, scale } = this;
    const ratio = canvas.width / (canvas.clientWidth || 1);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    const toPhoto = () =>
      context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.left, ratio * this.top);
    toPhoto();
    context.imageSmoothingEnabled = scale < 3;
    // Enlarged photos look alike either way, and are drawn faster so.
    context.imageSmoothingQuality = scale * ratio < 1 ? "high" : "low";
    const { width, height } = this.size;
    context.drawImage(this.picture, 0, 0, width, height);
    const scene = this.scene();
    if (scene.dim) {
      context.fillStyle = `rgb(8 10 13 / ${scene.dim})`;
      context.fillRect(0, 0, width, height);
    }
    for (const shape of scene.shapes) this.#drawShape(shape);
    if (scene.box) this.#drawBox(scene.box);
    context.setTransform(ratio, 0, 0, ratio, ratio * this.left, ratio * this.top);
    for (const mark of scene.marks) this.#drawMark(mark);
    if (scene.cross) this.#drawCross(scene.cross);
    this.onFrame();
  }

  #drawShape({ mask, fill, stroke, opacity = 0, width = 1.75, dashed = false }) {
    const { context, scale } = this;
    const path = pathOf(mask, scale);
    if (opacity > 0) {
      context.globalAlpha = opacity;
      context.fillStyle = fill;
      context.fill(path, "evenodd");
      context.globalAlpha = 1;
    }
    if (!stroke) return;
    context.lineJoin = "round";
    // A dark line below the bright one is seen on bright photos as well.
    context.strokeStyle = "rgb(0 0 0 / 0.5)";
    context.lineWidth = (width + 1.75) / scale;
    context.stroke(path);
    context.strokeStyle = stroke;
    context.lineWidth = width / scale;
    context.setLineDash(dashed ? [5 / scale, 4 / scale] : []);
    context.stroke(path);
    context.setLineDash([]);
  }

  #drawBox([x0, y0, x1, y1]) {
    const { context, scale } = this;
    const place = [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
    context.fillStyle = "rgb(255 255 255 / 0.08)";
    context.fillRect(...place);
    context.lineWidth = 3.5 / scale;
    context.strokeStyle = "rgb(0 0 0 / 0.5)";
    context.strokeRect(...place);
    context.lineWidth = 1.5 / scale;
    context.strokeStyle = "#fff";
    context.setLineDash([6 / scale, 4 / scale]);
    context.strokeRect(...place);
    context.setLineDash([]);
  }

  #drawMark({ point: [x, y], label, colour, waiting }) {
    const { context, scale } = this;
    // The middle of the pixel that was clicked.
    const [atX, atY] = [(x + 0.5) * scale, (y + 0.5) * scale];
    context.beginPath();
    context.arc(atX, atY, 7, 0, 2 * Math.PI);
    context.fillStyle = label ? colour : "#14171b";
    context.globalAlpha = waiting ? 0.55 : 1;
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = label ? "#14171b" : "#ff8f8f";
    context.stroke();
    context.beginPath();
    context.moveTo(atX - 3, atY);
    context.lineTo(atX + 3, atY);
    if (label) {
      context.moveTo(atX, atY - 3);
      context.lineTo(atX, atY + 3);
    }
    context.stroke();
    context.globalAlpha = 1;
  }

  #drawCross([x, y]) {
    const { context, scale } = this;
    const [atX, atY] = [(x + 0.5) * scale, (y + 0.5) * scale];
    context.beginPath();
    for (const [stepX, stepY] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(atX + 5 * stepX, atY + 5 * stepY);
      context.lineTo(atX + 16 * stepX, atY + 16 * stepY);
    }
    context.lineWidth = 4;
    context.strokeStyle = "rgb(0 0 0 / 0.6)";
    context.stroke();
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.stroke();
  }
}
