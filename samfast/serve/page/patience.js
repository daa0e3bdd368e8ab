// A server that is lost: what was asked of it is asked again until it answers.

import { ServerError } from "./api.js";

const RETRY_FIRST = 1000;
const RETRY_MOST = 8000;

export class Patience {
  /** onChange: called when the server is lost, and when it answers again. */
  constructor(onChange) {
    this.onChange = onChange;
    this.sleepers = new Set(); // each ends the wait before a further try
    this.lost = null; // why the server does not answer
  }

  /** The answer of `call`, which is made again until the server answers or the photo is left. */
  async untilAnswered(call, signal) {
    for (let delay = RETRY_FIRST; ; delay = Math.min(delay * 2, RETRY_MOST)) {
      signal?.throwIfAborted();
      try {
        const answer = await call();
        if (this.lost && !signal?.aborted) {
          this.lost = null;
          this.onChange();
        }
        return answer;
      } catch (error) {
        if (!(error instanceof ServerError) || !error.passing || signal?.aborted) throw error;
        this.lost = error.message;
        this.onChange();
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, delay);
          this.sleepers.add(() => {
            clearTimeout(timer);
            resolve();
          });
        });
      }
    }
  }

  /** End the waits: the next tries are made now. */
  tryAgain() {
    for (const wake of this.sleepers) wake();
    this.sleepers.clear();
  }
}
