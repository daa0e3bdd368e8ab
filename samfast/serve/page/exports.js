// What is made of the objects for other programs: files to download.

import { joinedRing, ringsOf } from "./outlines.js";
import { areaOf, boundsOf, pixelsIn, pixelsOf } from "./rle.js";
import { textOf } from "./saving.js";

/** A COCO instances file of one photo, as text. */
export function cocoOf({ name, width, height }, objects, classes) {
  const used = classes.all.filter((each) => objects.some((one) => one.classKey === each.key));
  const ids = new Map();
  let free = Math.max(0, ...used.map((each) => each.id ?? 0));
  for (const each of used) ids.set(each.key, each.id ?? (free += 1));
  const annotations = objects.map((each, index) => {
    const { x, y, width: wide, height: high } = boundsOf(each.mask) ??
      { x: 0, y: 0, width: 0, height: 0 };
    return {
      id: each.id ?? index + 1,
      image_id: 1,
      category_id: ids.get(each.classKey),
      segmentation: textOf(each.mask),
      area: areaOf(each.mask),
      bbox: [x, y, wide, high],
      iscrowd: 0,
      ...(each.name ? { name: each.name } : {}),
    };
  });
  numberAnew(annotations);
  return `${JSON.stringify({
    images: [{ id: 1, file_name: name, width, height }],
    annotations,
    categories: used.map((each) => ({ id: ids.get(each.key), name: each.name })),
  })}\n`;
}

/** Ids that are given twice, by the file and by counting, are counted anew. */
function numberAnew(annotations) {
  if (new Set(annotations.map((each) => each.id)).size === annotations.length) return;
  annotations.forEach((each, index) => (each.id = index + 1));
}

/** Rows of YOLO's segmentation labels: the class's place in the list, then x y of the outline. */
export function yoloOf({ width, height }, objects, classes) {
  const rows = [];
  for (const { classKey, mask } of objects) {
    const rings = ringsOf(mask);
    if (rings.length === 0) continue;
    const index = Math.max(0, classes.all.findIndex((each) => each.key === classKey));
    const shares = joinedRing(rings).flatMap(([x, y]) => [share(x / width), share(y / height)]);
    rows.push(`${[index, ...shares].join(" ")}\n`);
  }
  return rows.join("");
}

const share = (value) => String(Number(value.toPrecision(6)));

/** A grey PNG: at each pixel the number of its object, from 1; smaller ones lie on top. */
export async function labelMapOf({ width, height }, objects) {
  const values = new Uint16Array(width * height);
  const order = objects.map((each, index) => ({ mask: each.mask, value: index + 1 }));
  order.sort((one, other) => areaOf(other.mask) - areaOf(one.mask));
  for (const { mask, value } of order) {
    const pixels = pixelsOf(mask);
    for (let index = 0; index < pixels.length; index += 1) {
      if (pixels[index]) values[index] = value;
    }
  }
  return greyPng(values, width, height, objects.length > 255 ? 16 : 8);
}

/** A PNG of the photo inside the masks, cut to them, transparent around; null of empty masks. */
export async function cutoutOf(picture, { width, height }, masks) {
  const boxes = masks.map(boundsOf).filter((box) => box !== null);
  if (boxes.length === 0) return null;
  const x = Math.min(...boxes.map((box) => box.x));
  const y = Math.min(...boxes.map((box) => box.y));
  const box = {
    x,
    y,
    width: Math.max(...boxes.map((each) => each.x + each.width)) - x,
    height: Math.max(...boxes.map((each) => each.y + each.height)) - y,
  };
  const canvas = new OffscreenCanvas(box.width, box.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, -x, -y, width, height);
  const image = context.getImageData(0, 0, box.width, box.height);
  const inside = new Uint8Array(box.width * box.height);
  for (const mask of masks) {
    pixelsIn(mask, box).forEach((value, index) => (inside[index] |= value));
  }
  inside.forEach((value, index) => {
    if (!value) image.data.fill(0, index * 4, index * 4 + 4);
  });
  context.putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** A grey PNG of 8 or 16 bits. A canvas would write colours, and no more than 8 bits of each. */
async function greyPng(values, width, height, depth) {
  const bytes = depth / 8;
  const rows = new Uint8Array(height * (1 + width * bytes));
  const view = new DataView(rows.buffer);
  for (let y = 0; y < height; y += 1) {
    const start = y * (1 + width * bytes) + 1; // after the row's filter, 0
    for (let x = 0; x < width; x += 1) {
      const value = values[y * width + x];
      if (depth === 16) view.setUint16(start + 2 * x, value);
      else rows[start + x] = value;
    }
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, depth); // then colour type 0, which is grey, and no interlacing
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  const parts = [
    signature,
    chunk("IHDR", new Uint8Array(header.buffer)),
    chunk("IDAT", data),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts, { type: "image/png" });
}

function chunk(type, data) {
  const part = new Uint8Array(data.length + 12);
  const view = new DataView(part.buffer);
  view.setUint32(0, data.length);
  part.set(new TextEncoder().encode(type), 4);
  part.set(data, 8);
  view.setUint32(data.length + 8, crc32(part.subarray(4, data.length + 8)));
  return part;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** Hand a file to the browser's downloads. */
export function download(content, name, type = "text/plain") {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
