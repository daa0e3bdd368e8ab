// Masks as COCO's run lengths: runs go down the columns, and the first run is of background.
//
// A mask is {height, width, runs}, runs a Uint32Array that fills height * width. Masks are never
// changed once they are made, so that undo and caches may share them.

/** The mask of {"size": [h, w], "counts": text}; an Error if the text is damaged. */
export function parseMask({ size: [height, width], counts }) {
  const runs = [];
  let position = 0;
  while (position < counts.length) {
    let value = 0;
    let place = 0;
    let digit;
    do {
      digit = counts.charCodeAt(position) - 48;
      if (!(digit >= 0 && digit < 64)) throw new Error("a damaged mask: its text is not COCO's");
      value += (digit & 31) * 2 ** place;
      place += 5;
      position += 1;
    } while (digit & 32);
    if (digit & 16) value -= 2 ** place; // two's complement
    // From the fourth number on, each is the difference to the last but one.
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  const total = runs.reduce((sum, run) => sum + run, 0);
  if (total !== height * width || runs.some((run) => run < 0)) {
    throw new Error(`a damaged mask: its runs do not fill ${width} x ${height} pixels`);
  }
  return { height, width, runs: Uint32Array.from(runs) };
}

/** COCO's {"size", "counts"} of a mask. */
export function formatMask({ height, width, runs }) {
  const characters = [];
  for (let index = 0; index < runs.length; index += 1) {
    let value = runs[index] - (index > 2 ? runs[index - 2] : 0);
    let more = true;
    while (more) {
      const digit = value & 31;
      value >>= 5;
      more = digit & 16 ? value !== -1 : value !== 0;
      characters.push(String.fromCharCode((more ? digit | 32 : digit) + 48));
    }
  }
  return { size: [height, width], counts: characters.join("") };
}

const areas = new WeakMap();

/** The number of pixels of the mask, counted once. */
export function areaOf(mask) {
  let area = areas.get(mask);
  if (area === undefined) {
    area = 0;
    for (let index = 1; index < mask.runs.length; index += 2) area += mask.runs[index];
    areas.set(mask, area);
  }
  return area;
}

/** {x, y, width, height} around all pixels, in whole pixels; null of an empty mask. */
export function boundsOf({ height, runs }) {
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  eachRun(runs, (start, end) => {
    const [first, last] = [Math.floor(start / height), Math.floor((end - 1) / height)];
    left = Math.min(left, first);
    right = Math.max(right, last);
    // A run that goes on in the next column touches the bottom of one and the top of the other.
    top = Math.min(top, first === last ? start % height : 0);
    bottom = Math.max(bottom, first === last ? (end - 1) % height : height - 1);
  });
  if (right < 0) return null;
  return { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

/** Whether the pixel at column x and row y is in the mask. */
export function contains({ height, width, runs }, x, y) {
  if (x < 0 || y < 0 || x >= width || y >= height) return false;
  const target = x * height + y;
  let position = 0;
  for (let index = 0; index < runs.length; index += 1) {
    position += runs[index];
    if (target < position) return index % 2 === 1;
  }
  return false;
}

/** The pixels inside {x, y, width, height} as bytes of 0 and 1, row by row. */
export function pixelsIn({ height, runs }, box) {
  const pixels = new Uint8Array(box.width * box.height);
  eachRun(runs, (start, end) => {
    let position = start;
    while (position < end) {
      const column = Math.floor(position / height);
      const stop = Math.min(end, (column + 1) * height);
      const x = column - box.x;
      if (x >= 0 && x < box.width) {
        const low = Math.max(position - column * height, box.y);
        const high = Math.min(stop - column * height, box.y + box.height);
        for (let y = low; y < high; y += 1) pixels[(y - box.y) * box.width + x] = 1;
      }
      position = stop;
    }
  });
  return pixels;
}

/** All pixels as bytes of 0 and 1, row by row. */
export function pixelsOf(mask) {
  return pixelsIn(mask, { x: 0, y: 0, width: mask.width, height: mask.height });
}

/** The pixels of both masks together. */
export function union(one, other) {
  return combine(one, other, (a, b) => a || b);
}

/** The pixels of `one` that are not in `other`. */
export function difference(one, other) {
  return combine(one, other, (a, b) => a && !b);
}

/** Whether two masks have the same pixels. */
export function sameMask(one, other) {
  if (one === other) return true;
  if (!one || !other || one.runs.length !== other.runs.length) return false;
  return one.height === other.height && one.runs.every((run, index) => run === other.runs[index]);
}

function combine(one, other, rule) {
  const runs = [];
  const [a, b] = [one.runs, other.runs];
  let [i, j, leftA, leftB] = [0, 0, a[0], b[0]];
  let inside = false;
  let length = 0;
  while (i < a.length && j < b.length) {
    const step = Math.min(leftA, leftB);
    if (step > 0) {
      const next = rule(i % 2 === 1, j % 2 === 1);
      if (next !== inside) {
        runs.push(length);
        [inside, length] = [next, 0];
      }
      length += step;
    }
    [leftA, leftB] = [leftA - step, leftB - step];
    if (leftA === 0) leftA = a[(i += 1)];
    if (leftB === 0) leftB = b[(j += 1)];
  }
  runs.push(length);
  return { height: one.height, width: one.width, runs: Uint32Array.from(runs) };
}

function eachRun(runs, call) {
  let position = 0;
  for (let index = 0; index < runs.length; index += 1) {
    if (index % 2 === 1 && runs[index] > 0) call(position, position + runs[index]);
    position += runs[index];
  }
}
