// Outlines of masks along the edges of their pixels, to draw and to export.

import { boundsOf, pixelsIn } from "./rle.js";

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // east, south, west, north: right turns
const AHEAD_LEFT = [[0, -1], [0, 0], [-1, 0], [-1, -1]]; // pixels beside a corner, by direction
const AHEAD_RIGHT = [[0, 0], [-1, 0], [-1, -1], [0, -1]];

/**
 * The rings of a mask: lists of corners [x, y], (0, 0) the upper left corner of the image.
 *
 * The mask is at the right hand of whoever follows a ring, so that exteriors run clockwise and
 * holes counter-clockwise. Pixels that touch at a corner only lie in different rings. Filled by the
 * even-odd rule, the rings are the mask again.
 */
export function ringsOf(mask) {
  const box = boundsOf(mask);
  if (box === null) return [];
  const width = box.width + 2;
  const height = box.height + 2;
  // A border of background saves the checks at the sides.
  const framed = new Uint8Array(width * height);
  const pixels = pixelsIn(mask, box);
  for (let y = 0; y < box.height; y += 1) {
    framed.set(pixels.subarray(y * box.width, (y + 1) * box.width), (y + 1) * width + 1);
  }
  const seen = new Uint8Array(width * height);
  const rings = [];
  // Every ring has a pixel of the mask with background above: start at each such edge once.
  for (let start = width; start < width * height; start += 1) {
    if (framed[start] && !framed[start - width] && !seen[start]) {
      rings.push(follow(framed, width, start, seen, box));
    }
  }
  return rings;
}

function follow(framed, width, start, seen, box) {
  const ring = [];
  const startX = start % width;
  const startY = Math.floor(start / width);
  let [x, y, direction] = [startX, startY, 0];
  do {
    if (direction === 0) seen[y * width + x] = 1;
    x += STEPS[direction][0];
    y += STEPS[direction][1];
    const [leftX, leftY] = AHEAD_LEFT[direction];
    const [rightX, rightY] = AHEAD_RIGHT[direction];
    let turn = 0;
    if (!framed[(y + rightY) * width + x + rightX]) turn = 1;
    else if (framed[(y + leftY) * width + x + leftX]) turn = 3;
    if (turn) {
      ring.push([x - 1 + box.x, y - 1 + box.y]);
      direction = (direction + turn) % 4;
    }
  } while (x !== startX || y !== startY || direction !== 0);
  return ring;
}

/** Twice the area that a ring encloses: positive of an exterior, negative of a hole. */
export function signedArea(ring) {
  let area = 0;
  ring.forEach(([x, y], index) => {
    const [nextX, nextY] = ring[(index + 1) % ring.length];
    area += x * nextY - nextX * y;
  });
  return area;
}

/** A Path2D of rings, corner by corner. */
export function exactPath(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    ring.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

/**
 * A Path2D through the middles of the pixels' edges, which cuts each corner by half a pixel.
 *
 * It looks smooth where pixels are small; the mask itself keeps its corners.
 */
export function smoothPath(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    let first = true;
    const add = (x, y) => {
      if (first) path.moveTo(x, y);
      else path.lineTo(x, y);
      first = false;
    };
    ring.forEach(([x, y], index) => {
      const [nextX, nextY] = ring[(index + 1) % ring.length];
      const [stepX, stepY] = [Math.sign(nextX - x) / 2, Math.sign(nextY - y) / 2];
      add(x + stepX, y + stepY);
      add(nextX - stepX, nextY - stepY);
    });
    path.closePath();
  }
  return path;
}

/**
 * All rings of a mask as one, which encloses the same pixels: what a row of YOLO's labels holds.
 *
 * Each further ring is joined to the outline so far by a line there and back, between the two
 * corners that are closest.
 */
export function joinedRing(rings) {
  let outline = rings[0];
  for (const ring of rings.slice(1)) {
    let [best, from, to] = [Infinity, 0, 0];
    outline.forEach(([x, y], i) => {
      ring.forEach(([otherX, otherY], j) => {
        const distance = (x - otherX) ** 2 + (y - otherY) ** 2;
        if (distance < best) [best, from, to] = [distance, i, j];
      });
    });
    const around = [...ring.slice(to), ...ring.slice(0, to), ring[to]];
    outline = [...outline.slice(0, from + 1), ...around, ...outline.slice(from)];
  }
  return outline;
}
