// What wheel, right button and keys do beyond NiiVue: zoom about the crosshair, and a window.

const MOST = 10; // times
const DOUBLE = 200; // pixels to the side that double the width of a window
const SHIFT = 400; // pixels upwards that move its centre by its width

// Zoom by a factor about the crosshair; at 1 the whole picture stands in its middle again.
export function zoom(viewer, factor) {
  const [x, y, z, now] = viewer.scene.pan2Dxyzmm;
  const next = Math.min(now * factor, MOST);
  const mm = viewer.frac2mm(viewer.scene.crosshairPos);
  const moved = [x, y, z].map((shift, axis) => shift + (now - next) * mm[axis]);
  viewer.setPan2Dxyzmm(next > 1.01 ? [...moved, next] : [0, 0, 0, 1]);
}

// Shift and the wheel: `turn` is called with 1 to come nearer, -1 to go away.
export function onShiftWheel(place, turn) {
  place.addEventListener("wheel", (event) => {
    if (!event.shiftKey || event.target.tagName !== "CANVAS") return;
    event.preventDefault();
    event.stopImmediatePropagation();
    // with Shift some browsers turn the wheel sideways
    turn((event.deltaY || event.deltaX) < 0 ? 1 : -1);
  }, { capture: true, passive: false });
}

// Dragging with the right button: to the right a wider window, upwards a higher centre. NiiVue's
// own drag counts in units of the scan, so that a scan of 0 to 1 turns black at a touch.
// `window()`: [lowest, highest] shown; `set(lowest, highest)` shows others.
export function onRightDrag(canvas, window, set) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 2) return;
    const [low, high] = window();
    from = { x: event.clientX, y: event.clientY, width: high - low, centre: (low + high) / 2 };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const width = from.width * 2 ** ((event.clientX - from.x) / DOUBLE);
    const centre = from.centre + (from.width * (from.y - event.clientY)) / SHIFT;
    set(centre - width / 2, centre + width / 2);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { from = null; });
  }
}
