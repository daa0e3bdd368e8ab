// The classes that objects have: their names, colours, and ids in the COCO file.

/** Colours that differ from each other and from most photos, in the order they are given out. */
export const PALETTE = [
  "#2fdcc6", "#ffd84a", "#b794ff", "#ff7ab8", "#57b6ff", "#a5e64b",
  "#ff9147", "#86e3ff", "#ff6f66", "#d67bff", "#4fe08d", "#e6b980",
];

export class Classes {
  /** Each class is {key, id, name, colour, changed}: id is null until the server has given one. */
  constructor(onChange) {
    this.onChange = onChange;
    this.all = [];
    this.currentKey = null;
  }

  get(key) {
    return this.all.find((each) => each.key === key) ?? null;
  }

  /** The class that new objects get, or null where there is none yet. */
  get current() {
    return this.get(this.currentKey) ?? this.all[0] ?? null;
  }

  /** The class of an object that is made now; "object" where the user has named none. */
  forNewObject() {
    return this.current ?? this.add("object");
  }

  choose(key) {
    this.currentKey = key;
    this.onChange();
  }

  /** The class of that name, made if there is none. */
  add(name) {
    const clean = name.trim();
    const known = this.all.find((each) => each.name === clean);
    if (known) return known;
    const added = {
      key: randomKey(),
      id: null,
      name: clean,
      colour: PALETTE[this.all.length % PALETTE.length],
      changed: false,
    };
    this.all = [...this.all, added];
    this.onChange();
    return added;
  }

  change(key, changes) {
    this.all = this.all.map((each) =>
      each.key === key ? { ...each, ...changes, changed: true } : each);
    this.onChange();
  }

  /** Take over COCO categories {id, name, color}; what was changed here and not sent yet stays. */
  adopt(categories) {
    for (const { id, name, color } of categories) {
      const known = this.all.find((each) => each.id === id) ??
        this.all.find((each) => each.id === null && each.name === name);
      const colour = color ?? PALETTE[this.all.length % PALETTE.length];
      if (!known) {
        const added = { key: `category ${id}`, id, name, colour, changed: false };
        this.all = [...this.all, added];
      } else {
        const changes = known.changed ? { id } : { id, name, colour: color ?? known.colour };
        this.all = this.all.map((each) => (each === known ? { ...each, ...changes } : each));
      }
    }
    this.onChange();
  }

  /** The class of a COCO category's id. */
  ofCategory(id) {
    return this.all.find((each) => each.id === id) ?? null;
  }

  /** Classes of which the server does not have the name or colour yet. */
  get unsent() {
    return this.all.filter((each) => each.changed && each.id !== null);
  }

  markSent(sent) {
    this.all = this.all.map((each) =>
      sent.some((one) => one === each) ? { ...each, changed: false } : each);
  }
}

/** A key for what is new; also where the page is served without TLS, which has no randomUUID. */
export function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
}
