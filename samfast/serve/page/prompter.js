// From clicks and boxes to masks: what is asked of the server, once, and what is kept of it.

import { ServerError } from "./api.js";
import { parseMask } from "./rle.js";

const ANSWERS_KEPT = 48;

/** The prompts of an object with one more click on it. */
export function withClick(prompts, point, label) {
  const before = prompts ?? { points: [], labels: [], box: null };
  return {
    points: [...before.points, point],
    labels: [...before.labels, label],
    box: before.box,
  };
}

export class Prompter {
  constructor(api) {
    this.api = api;
    this.references = new WeakMap(); // mask -> the server's name of its logits
    this.siblings = new WeakMap(); // mask -> [{mask, iou}] of the same click, small to large
    this.close();
  }

  /** Forget the photo: answers that still come are dropped. */
  close() {
    this.image = null;
    this.encode = null;
    this.answers = new Map();
    this.previews = new Set();
    this.wanted = null;
    this.busy = false;
  }

  /**
   * Ask about a photo from now on.
   *
   * encode  has the server encode the photo; resolves to its {id, width, height}. It is called
   *         again where the server has forgotten the photo
   */
  open(encode) {
    this.close();
    this.encode = encode;
    this.image = encode();
    // Whoever asks gets the error too; without anybody it must not count as unhandled.
    this.image.catch(() => {});
  }

  /**
   * The {mask, iou} of prompts; that of the highest predicted IoU where a click is ambiguous.
   *
   * previous  the object's mask so far, which the decoder starts from if the server has its logits
   */
  ask(prompts, previous = null) {
    return this.#answer(prompts, previous, null);
  }

  /**
   * Call `show` with the answer to prompts, unless other ones are previewed before it comes.
   *
   * One preview is asked at a time: a pointer moves faster than the decoder.
   */
  preview(prompts, previous, show) {
    this.wanted = { prompts, previous, show };
    if (!this.busy) this.#previewNext();
  }

  /** Drop the preview that is wanted or on its way. */
  stopPreview() {
    this.wanted = null;
    for (const controller of this.previews) controller.abort();
  }

  async #previewNext() {
    this.busy = true;
    const { encode } = this;
    while (this.wanted && this.encode === encode) {
      const job = this.wanted;
      this.wanted = null;
      const controller = new AbortController();
      this.previews.add(controller);
      try {
        const answer = await this.#answer(job.prompts, job.previous, controller);
        if (this.encode === encode && !controller.signal.aborted) job.show(answer);
      } catch {
        // A preview that fails is not shown; the click that follows says what is wrong.
      }
      this.previews.delete(controller);
    }
    if (this.encode === encode) this.busy = false;
  }

  #answer(prompts, previous, controller) {
    const reference = (previous && this.references.get(previous)) ?? null;
    const key = JSON.stringify([prompts, reference]);
    const known = this.answers.get(key);
    if (known && !known.aborted()) {
      // What began as a preview is now waited for.
      if (!controller) this.previews.delete(known.controller);
      return known.answer;
    }
    // A click does not wait behind a preview of something else.
    if (!controller) this.stopPreview();
    const answer = this.#request(prompts, reference, controller?.signal);
    const aborted = () => controller?.signal.aborted ?? false;
    this.answers.set(key, { answer, controller, aborted });
    answer.catch(() => this.answers.delete(key));
    if (this.answers.size > ANSWERS_KEPT) this.answers.delete(this.answers.keys().next().value);
    return answer;
  }

  async #request(prompts, reference, signal) {
    const { encode } = this;
    const image = await this.image;
    signal?.throwIfAborted();
    try {
      return await this.#decode(image, prompts, reference, signal);
    } catch (error) {
      const lost = error instanceof ServerError && [404, 409, 410].includes(error.status);
      if (!lost || this.encode !== encode) throw error;
      // The server was started again, or had to make room.
      const again = await this.encodeAgain(image);
      try {
        return await this.#decode(again, prompts, reference, signal);
      } catch (second) {
        if (!(second instanceof ServerError) || second.status === 0 || !reference) throw second;
        return this.#decode(again, prompts, null, signal);
      }
    }
  }

  /** The photo, encoded once more, whoever else asks for that meanwhile. */
  async encodeAgain(image) {
    const current = await this.image;
    if (current === image) {
      const before = this.image;
      this.image = this.encode();
      this.image.catch(() => {
        this.image = before; // so that a later click tries again
      });
    }
    return this.image;
  }

  async #decode(image, { points, labels, box }, reference, signal) {
    const object = {};
    if (points.length) Object.assign(object, { points, labels });
    if (box) object.box = box;
    if (reference) object.mask = reference;
    // A single click may mean a part or the whole, so that three masks are worth having.
    const multimask = points.length === 1 && !box && !reference;
    const [{ masks }] = await this.api.predict(image.id, [object], multimask, signal);
    const answers = masks.map((each) => {
      const mask = parseMask(each.segmentation);
      if (each.ref !== undefined) this.references.set(mask, each.ref);
      return { mask, iou: each.predicted_iou, area: each.area };
    });
    const best = answers.reduce((one, other) => (other.iou > one.iou ? other : one));
    const ordered = [...answers].sort((one, other) => one.area - other.area);
    for (const { mask } of answers) this.siblings.set(mask, ordered);
    return best;
  }
}
