// Two tabs changed the objects of one photo: nobody's work is lost.

import { sameMask } from "./rle.js";

const FIELDS = ["classKey", "name"];

/**
 * Objects as `mine` and `theirs` made them of `base`, and how many both had changed.
 *
 * Returns {objects, copies}. What one side changed, added or deleted is taken over. Where both
 * changed a mask, both masks stay: the other side's becomes an object of its own. An object that
 * one side deleted and the other changed stays. Of a class or name that both changed, mine counts.
 */
export function mergeObjects(base, mine, theirs, newKey) {
  const before = byKey(base);
  const other = byKey(theirs);
  const ours = byKey(mine);
  const objects = [];
  let copies = 0;
  for (const object of mine) {
    const old = before.get(object.key);
    const their = other.get(object.key);
    if (!their) {
      // They deleted it, or never had it.
      if (!old) objects.push(object);
      else if (!sameObject(old, object)) objects.push({ ...object, id: null });
      continue;
    }
    const merged = { ...object, id: their.id };
    for (const field of FIELDS) {
      if (old && object[field] === old[field]) merged[field] = their[field];
    }
    if (old && sameMask(old.mask, object.mask)) {
      Object.assign(merged, { mask: their.mask, prompts: their.prompts, iou: their.iou });
    }
    objects.push(merged);
    const theyChanged = !old || !sameMask(old.mask, their.mask);
    if (theyChanged && !sameMask(merged.mask, their.mask)) {
      copies += 1;
      objects.push({ ...their, key: newKey(), id: null });
    }
  }
  for (const their of theirs) {
    if (ours.has(their.key)) continue;
    const old = before.get(their.key);
    // I deleted what they did not touch.
    if (old && sameObject(old, their)) continue;
    objects.push(their);
  }
  return { objects, copies };
}

/** Whether two states of an object have the same class, name and pixels. */
export function sameObject(one, other) {
  return FIELDS.every((field) => one[field] === other[field]) && sameMask(one.mask, other.mask);
}

/** Whether two lists hold the same objects, in any order. */
export function sameObjects(some, others) {
  const ours = byKey(some);
  return some.length === others.length &&
    others.every((each) => ours.has(each.key) && sameObject(ours.get(each.key), each));
}

function byKey(objects) {
  return new Map(objects.map((each) => [each.key, each]));
}
