// Tiles of an image's pixels at several levels: asked for as they come into sight, and kept.

const AT_ONCE = 6;
const KEPT = 192; // bitmaps of 1 MiB each

export class SceneTiles {
  /**
   * request  (level, column, row, signal) -> a Blob
   * info     {width, height, tile, levels} of the image
   * changed  called when a tile has come
   */
  constructor(request, info, changed) {
    this.request = request;
    this.info = info;
    this.changed = changed;
    this.bitmaps = new Map(); // key -> ImageBitmap, those used last at the end
    this.waiting = new Map(); // key -> AbortController
    this.failed = new Map(); // key -> when
    this.wanted = [];
    this.error = null;
  }

  /** The level whose pixels are as fine as the screen's, or a little finer. */
  levelFor(scale) {
    const level = Math.floor(Math.log2(1 / scale));
    return Math.max(0, Math.min(this.info.levels - 1, level));
  }

  /** {x, y, width, height} of a tile in pixels of the image. */
  placeOf(level, column, row) {
    const side = this.info.tile * 2 ** level;
    const [x, y] = [column * side, row * side];
    return {
      x, y,
      width: Math.min(side, this.info.width - x),
      height: Math.min(side, this.info.height - y),
    };
  }

  /** [level, column, row] of the tiles of a level that meet {left, top, right, bottom}. */
  within(level, { left, top, right, bottom }) {
    const side = this.info.tile * 2 ** level;
    const first = (value) => Math.max(0, Math.floor(value / side));
    const end = (length, value) => Math.min(Math.ceil(length / side), Math.ceil(value / side));
    const [rows, columns] = [end(this.info.height, bottom), end(this.info.width, right)];
    const tiles = [];
    for (let row = first(top); row < rows; row += 1) {
      for (let column = first(left); column < columns; column += 1) {
        tiles.push([level, column, row]);
      }
    }
    return tiles;
  }

  /** A tile's bitmap, or null if it is not here. */
  get(level, column, row) {
    const key = `${level}/${column}/${row}`;
    const bitmap = this.bitmaps.get(key);
    if (!bitmap) return null;
    this.bitmaps.delete(key);
    this.bitmaps.set(key, bitmap);
    return bitmap;
  }

  /** Ask for these tiles, the first ones first; those that are not among them any more are not. */
  want(tiles) {
    this.wanted = tiles.filter(([level, column, row]) => {
      const key = `${level}/${column}/${row}`;
      const failed = this.failed.get(key);
      return !this.bitmaps.has(key) && !(failed && performance.now() - failed < 2000);
    });
    const keys = new Set(this.wanted.map((each) => each.join("/")));
    for (const [key, controller] of this.waiting) {
      if (!keys.has(key)) controller.abort();
    }
    this.#next();
  }

  close() {
    this.wanted = [];
    for (const controller of this.waiting.values()) controller.abort();
    for (const bitmap of this.bitmaps.values()) bitmap.close();
    this.bitmaps.clear();
  }

  #next() {
    while (this.waiting.size < AT_ONCE) {
      const tile = this.wanted.find((each) => !this.waiting.has(each.join("/")));
      if (!tile) return;
      this.wanted.splice(this.wanted.indexOf(tile), 1);
      this.#load(tile);
    }
  }

  async #load(tile) {
    const key = tile.join("/");
    const controller = new AbortController();
    this.waiting.set(key, controller);
    try {
      const bitmap = await createImageBitmap(await this.request(...tile, controller.signal));
      if (controller.signal.aborted) return bitmap.close();
      this.bitmaps.set(key, bitmap);
      this.failed.delete(key);
      this.error = null;
      if (this.bitmaps.size > KEPT) {
        const [oldest, old] = this.bitmaps.entries().next().value;
        this.bitmaps.delete(oldest);
        old.close();
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        this.failed.set(key, performance.now());
        this.error = error;
        setTimeout(this.changed, 2100); // it is asked for again
      }
    } finally {
      this.waiting.delete(key);
      this.#next();
      this.changed();
    }
    return undefined;
  }
}
