// Mouse, pen and fingers on the canvas, told as clicks, boxes, zooming and panning.

const DRAG_FROM = 5; // CSS pixels
const TOUCH_DRAG_FROM = 10;
const LONG_PRESS = 480; // ms

/**
 * Watch the canvas of a view and call
 *
 *   hover(pixel or null, {remove})    click(pixel, {remove, select})
 *   box([x0, y0, x1, y1] or null, {done})    held()
 *
 * tool  returns "add", "remove", "box" or "hand"
 */
export function watchPointer(view, tool, { hover, click, box, held }) {
  const { canvas } = view;
  const touches = new Map(); // pointerId -> [x, y]
  let press = null; // {id, x, y, kind, touch, start, timer}
  let pinch = null; // {distance, x, y}
  let space = false;
  let mouse = null; // where in the window it is, on the canvas

  const removes = (event) => event.shiftKey || event.button === 2 || tool() === "remove";

  const setCursor = () => {
    const panning = press?.kind === "pan";
    canvas.dataset.cursor = panning ? "grabbing" : space || tool() === "hand" ? "grab" : tool();
  };

  function clampedCorner(event) {
    const { width, height } = view.size;
    const [x, y] = view.toPhoto(event.clientX, event.clientY);
    const within = (value, most) => Math.max(0, Math.min(most, Math.round(value)));
    return [within(x, width), within(y, height)];
  }

  function drop() {
    if (press) clearTimeout(press.timer);
    if (press?.kind === "box") box(null, { done: true });
    press = null;
    setCursor();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!view.picture) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    const touch = event.pointerType === "touch";
    if (touch) touches.set(event.pointerId, [event.clientX, event.clientY]);
    if (touches.size === 2) {
      drop();
      pinch = pinchOf(touches);
      return;
    }
    if (touches.size > 2 || press) return;
    const pans = event.button === 1 || space || tool() === "hand";
    press = {
      id: event.pointerId,
      x: event.clientX,
      y: event.clientY,
      kind: pans ? "pan" : "press",
      touch,
      start: clampedCorner(event),
      timer: 0,
    };
    if (touch && !pans && tool() !== "box") {
      press.timer = setTimeout(() => {
        const pixel = view.pixelAt(press.x, press.y);
        press.kind = "done";
        navigator.vibrate?.(15);
        held();
        if (pixel) click(pixel, { remove: tool() !== "remove", select: false });
      }, LONG_PRESS);
    }
    setCursor();
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    mouse = event.pointerType === "touch" ? null : [event.clientX, event.clientY];
    if (touches.has(event.pointerId)) touches.set(event.pointerId, [event.clientX, event.clientY]);
    if (pinch && touches.size === 2) {
      const now = pinchOf(touches);
      const place = canvas.getBoundingClientRect();
      view.pan(now.x - pinch.x, now.y - pinch.y);
      view.zoom(now.distance / pinch.distance, now.x - place.left, now.y - place.top);
      pinch = now;
      return;
    }
    if (!press) {
      if (event.pointerType !== "touch") {
        const free = tool() !== "hand" && !space && event.buttons === 0;
        const pixel = free ? view.pixelAt(event.clientX, event.clientY) : null;
        hover(pixel, { remove: removes(event) });
      }
      return;
    }
    if (event.pointerId !== press.id || press.kind === "done") return;
    const far = Math.hypot(event.clientX - press.x, event.clientY - press.y);
    if (press.kind === "press" && far > (press.touch ? TOUCH_DRAG_FROM : DRAG_FROM)) {
      clearTimeout(press.timer);
      // A finger moves the photo, as everywhere on a phone, unless it was told to draw boxes; and
      // nobody who takes away wants a new object.
      press.kind = (press.touch && tool() !== "box") || tool() === "remove" ? "pan" : "box";
      hover(null, { remove: false });
      setCursor();
    }
    if (press.kind === "pan") {
      view.pan(event.clientX - press.x, event.clientY - press.y);
      [press.x, press.y] = [event.clientX, event.clientY];
    } else if (press.kind === "box") {
      box([...press.start, ...clampedCorner(event)], { done: false });
    }
  });

  canvas.addEventListener("pointerup", (event) => {
    touches.delete(event.pointerId);
    if (touches.size < 2) pinch = null;
    if (!press || event.pointerId !== press.id) return;
    const { kind, start, timer, touch } = press;
    clearTimeout(timer);
    press = null;
    setCursor();
    if (kind === "box") {
      const [x, y] = clampedCorner(event);
      const drawn = [
        Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y),
      ];
      const enough = drawn[2] - drawn[0] > 1 && drawn[3] - drawn[1] > 1;
      box(enough ? drawn : null, { done: true });
    } else if (kind === "press") {
      const pixel = view.pixelAt(event.clientX, event.clientY);
      const select = !touch && (event.ctrlKey || event.metaKey || event.altKey);
      if (pixel) click(pixel, { remove: removes(event), select });
    }
  });

  canvas.addEventListener("pointercancel", (event) => {
    touches.delete(event.pointerId);
    pinch = null;
    drop();
  });
  canvas.addEventListener("pointerleave", () => {
    mouse = null;
    hover(null, { remove: false });
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (!view.picture) return;
    const place = canvas.getBoundingClientRect();
    const pixels = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
    const speed = event.ctrlKey ? 0.01 : 0.0022; // a pinch on a touchpad counts in small steps
    const factor = Math.exp(-Math.max(-240, Math.min(240, pixels)) * speed);
    view.zoom(factor, event.clientX - place.left, event.clientY - place.top);
    if (!press) hover(view.pixelAt(event.clientX, event.clientY), { remove: removes(event) });
  }, { passive: false });

  return {
    /** Space is held: dragging moves the photo. */
    setSpace(down) {
      space = down;
      setCursor();
    },
    refresh: setCursor,
    /** The pixel of the photo below the mouse, or null. */
    pixel: () => (mouse ? view.pixelAt(...mouse) : null),
  };
}

function pinchOf(touches) {
  const [[x0, y0], [x1, y1]] = [...touches.values()];
  return { distance: Math.hypot(x1 - x0, y1 - y0) || 1, x: (x0 + x1) / 2, y: (y0 + y1) / 2 };
}
