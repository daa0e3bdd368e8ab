// A large image on the canvas: tiles of the level that fits, coarser ones until these are here.

import { Viewport } from "./viewport.js";

const MAX_SCALE = 24;
const COLOURS = ["#ff9147", "#5ec8ff", "#9be15d", "#ff6fb1", "#ffd84a", "#b79bff", "#4fe0c0"];

/** The colour of an object, by its number. */
export function colourOf(id) {
  return COLOURS[id % COLOURS.length];
}

/** A Path2D of polygons {exterior, holes} in pixels of the image. */
export function pathOf(polygons) {
  const path = new Path2D();
  for (const { exterior, holes } of polygons) {
    for (const ring of [exterior, ...holes]) {
      ring.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
      path.closePath();
    }
  }
  return path;
}

export class SceneView extends Viewport {
  /** overlay: called to draw each frame; returns {objects, marks, box} (see `#drawOverlay`). */
  constructor(canvas, overlay) {
    super(canvas, canvas.getContext("2d", { alpha: false }), MAX_SCALE);
    this.overlay = overlay;
    this.tiles = null;
    new ResizeObserver(() => {
      if (this.fitted) this.fit();
      this.draw();
    }).observe(canvas);
  }

  /** Whether an image is shown: clicks are taken then. */
  get picture() {
    return this.tiles !== null;
  }

  show(tiles) {
    this.tiles?.close();
    this.tiles = tiles;
    const { width, height } = tiles?.info ?? { width: 0, height: 0 };
    this.size = { width, height };
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const { width, height } = this.size;
    if (!width || !clientWidth) return;
    this.scale = Math.min(clientWidth / width, clientHeight / height, MAX_SCALE);
    this.left = (clientWidth - width * this.scale) / 2;
    this.top = (clientHeight - height * this.scale) / 2;
    this.fitted = true;
    this.invalidate();
  }

  /** A thumbnail of 64 pixels. */
  get least() {
    return Math.min(1, 64 / Math.max(this.size.width, this.size.height, 64));
  }

  /** Show {x, y, width, height} of the image in the middle, with room around it. */
  reveal({ x, y, width, height }) {
    const { clientWidth, clientHeight } = this.canvas;
    const room = Math.min(clientWidth / Math.max(width, 1), clientHeight / Math.max(height, 1)) / 2;
    this.scale = Math.min(MAX_SCALE, Math.max(this.scale, Math.min(room, 2)), room);
    this.left = clientWidth / 2 - (x + width / 2) * this.scale;
    this.top = clientHeight / 2 - (y + height / 2) * this.scale;
    this.pan(0, 0);
  }

  /** The model is shown one pixel for so many of the image's, a side: as the screen shows them. */
  get modelZoom() {
    const ratio = window.devicePixelRatio || 1;
    return 2 ** Math.max(0, Math.floor(Math.log2(1 / (this.scale * ratio)) + 1e-9));
  }

  draw() {
    this.pending = false;
    const ratio = window.devicePixelRatio || 1;
    const { canvas, context } = this;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#0b0d10";
    context.fillRect(0, 0, width, height);
    if (this.tiles) {
      const scale = this.scale * ratio;
      context.setTransform(scale, 0, 0, scale, this.left * ratio, this.top * ratio);
      this.#drawTiles(scale);
      this.#drawOverlay(scale);
    }
    this.onFrame();
  }

  #drawTiles(scale) {
    const { tiles, context } = this;
    const sight = {
      left: -this.left / this.scale,
      top: -this.top / this.scale,
      right: (this.canvas.clientWidth - this.left) / this.scale,
      bottom: (this.canvas.clientHeight - this.top) / this.scale,
    };
    const finest = tiles.levelFor(scale);
    context.imageSmoothingEnabled = scale < 3;
    const wanted = [];
    // Coarser tiles first, so that finer ones lie on them.
    for (let level = tiles.info.levels - 1; level >= finest; level -= 1) {
      for (const tile of tiles.within(level, sight)) {
        const bitmap = tiles.get(...tile);
        if (bitmap) {
          const place = tiles.placeOf(...tile);
          const pixels = 2 ** level;
          context.drawImage(
            bitmap, 0, 0, place.width / pixels, place.height / pixels,
            place.x, place.y, place.width, place.height,
          );
        } else if (level === finest || level === tiles.info.levels - 1) {
          wanted.push(tile);
        }
      }
    }
    const middle = [(sight.left + sight.right) / 2, (sight.top + sight.bottom) / 2];
    const distance = (tile) => {
      const { x, y, width, height } = tiles.placeOf(...tile);
      return Math.hypot(x + width / 2 - middle[0], y + height / 2 - middle[1]);
    };
    wanted.sort((a, b) => b[0] - a[0] || distance(a) - distance(b));
    tiles.want(wanted);
  }

  /** objects: {path, id, active}; marks: {x, y, label}; box: [x0, y0, x1, y1] or null. */
  #drawOverlay(scale) {
    const { context } = this;
    const { objects, marks, box } = this.overlay();
    context.lineJoin = "round";
    for (const { path, id, active } of objects) {
      const colour = colourOf(id);
      context.fillStyle = `${colour}${active ? "55" : "38"}`;
      context.fill(path, "evenodd");
      context.strokeStyle = colour;
      context.lineWidth = (active ? 2.5 : 1.5) / scale;
      context.stroke(path);
    }
    if (box) {
      context.strokeStyle = "#ffffff";
      context.lineWidth = 1.5 / scale;
      context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
    for (const { x, y, label } of marks) {
      context.beginPath();
      context.arc(x, y, 5 / scale, 0, 2 * Math.PI);
      context.fillStyle = label ? "#5fd08d" : "#ff6b6b";
      context.fill();
      context.strokeStyle = "#0b0d10";
      context.lineWidth = 1.5 / scale;
      context.stroke();
    }
  }
}
