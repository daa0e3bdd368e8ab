// A large image on the canvas: tiles of the level that fits, coarser ones until these are here.

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

export class SceneView {
  /** overlay: called to draw each frame; returns {objects, marks, box} (see `#drawOverlay`). */
  constructor(canvas, overlay) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.overlay = overlay;
    this.tiles = null;
    this.size = { width: 0, height: 0 };
    this.scale = 1;
    this.left = 0; // of the image on the canvas, in CSS pixels
    this.top = 0;
    this.fitted = true;
    this.pending = false;
    this.onFrame = () => {};
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

  /** Scale by a factor; the image's pixel below (x, y) on the canvas stays there. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const least = Math.min(1, 64 / Math.max(this.size.width, this.size.height, 64));
    const scale = Math.max(least, Math.min(this.scale * factor, MAX_SCALE));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.pan(0, 0);
  }

  pan(x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    const margin = 60;
    const [width, height] = [this.size.width * this.scale, this.size.height * this.scale];
    this.left = Math.min(clientWidth - margin, Math.max(margin - width, this.left + x));
    this.top = Math.min(clientHeight - margin, Math.max(margin - height, this.top + y));
    this.fitted = false;
    this.invalidate();
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

  /** The image's coordinates below (x, y) of the window, not rounded. */
  toPhoto(clientX, clientY) {
    const place = this.canvas.getBoundingClientRect();
    return [
      (clientX - place.left - this.left) / this.scale,
      (clientY - place.top - this.top) / this.scale,
    ];
  }

  /** The window's coordinates of a point of the image. */
  toWindow([x, y]) {
    const place = this.canvas.getBoundingClientRect();
    return [place.left + this.left + x * this.scale, place.top + this.top + y * this.scale];
  }

  /** The pixel [x, y] below (x, y) of the window, or null beside the image. */
  pixelAt(clientX, clientY) {
    const [x, y] = this.toPhoto(clientX, clientY).map(Math.floor);
    const inside = x >= 0 && y >= 0 && x < this.size.width && y < this.size.height;
    return inside && this.picture ? [x, y] : null;
  }

  /** The model is shown one pixel for so many of the image's, a side: as the screen shows them. */
  get modelZoom() {
    const ratio = window.devicePixelRatio || 1;
    return 2 ** Math.max(0, Math.floor(Math.log2(1 / (this.scale * ratio)) + 1e-9));
  }

  invalidate() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.draw());
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
