// Where an image lies on a canvas: scale, place, and the way between both and the window.

const MARGIN = 60; // CSS pixels of the image that always stay in sight

/** What the views of photos and of large images share; a subclass has `draw` and `picture`. */
export class Viewport {
  constructor(canvas, context, largest) {
    this.canvas = canvas;
    this.context = context;
    this.largest = largest; // screen pixels per pixel of the image
    this.size = { width: 0, height: 0 };
    this.scale = 1;
    this.left = 0; // of the image on the canvas, in CSS pixels
    this.top = 0;
    this.fitted = true;
    this.pending = false;
    this.onFrame = () => {};
  }

  /** Scale by a factor; the image's pixel below (x, y) on the canvas stays there. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.max(this.least, Math.min(this.scale * factor, this.largest));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.pan(0, 0);
  }

  pan(x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [this.size.width * this.scale, this.size.height * this.scale];
    this.left = Math.min(clientWidth - MARGIN, Math.max(MARGIN - width, this.left + x));
    this.top = Math.min(clientHeight - MARGIN, Math.max(MARGIN - height, this.top + y));
    this.fitted = false;
    this.invalidate();
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

  invalidate() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.draw());
  }
}
