// Everything in a photo: outlines that the server finds, of which clicks keep some.

import { areaOf, contains, difference, parseMask } from "./rle.js";

const SAME = 0.8; // IoU from which a mask counts as an object that is there already

export class Everything {
  constructor(api, onChange) {
    this.api = api;
    this.onChange = onChange;
    this.pointsPerSide = 32;
    this.leave();
  }

  leave() {
    this.controller?.abort();
    Object.assign(this, { on: false, searching: false, share: 0 });
    Object.assign(this, { candidates: [], controller: null });
  }

  /** Look for everything that is none of the objects; resolves when all has been found. */
  async find(image, objects) {
    this.leave();
    const controller = new AbortController();
    Object.assign(this, { on: true, searching: true, controller });
    this.onChange();
    try {
      const { id } = await image;
      controller.signal.throwIfAborted();
      const progress = (share) => {
        if (this.controller !== controller) return;
        this.share = share;
        this.onChange();
      };
      const onRecord = (record) => {
        if (this.controller !== controller) return;
        const mask = parseMask(record.segmentation);
        const area = areaOf(mask);
        if (!area || objects.some((each) => overlap(mask, each.mask) > SAME)) return;
        this.candidates.push({ mask, iou: record.predicted_iou, area, key: null });
        // The smallest is on top, so that a click takes a part rather than the whole around it.
        this.candidates.sort((one, other) => other.area - one.area);
        this.onChange();
      };
      const { pointsPerSide } = this;
      await this.api.segment(id, {
        pointsPerSide, onRecord, progress, signal: controller.signal,
      });
    } catch (error) {
      if (error.name === "AbortError") return;
      if (this.controller === controller) this.leave();
      throw error;
    } finally {
      if (this.controller === controller) this.searching = false;
      this.onChange();
    }
  }

  /** The smallest candidate that has the pixel, or null. */
  at([x, y]) {
    return this.candidates.findLast(({ mask }) => contains(mask, x, y)) ?? null;
  }
}

function overlap(one, other) {
  const [a, b] = [areaOf(one), areaOf(other)];
  if (Math.min(a, b) < SAME * Math.max(a, b)) return 0;
  const only = areaOf(difference(one, other));
  return (a - only) / (b + only);
}
