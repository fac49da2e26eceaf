// The viewer: scan, map and mask by NiiVue, in radiological convention (the patient's right is left).

import { byId, data, fixed, say, short, t } from "./page.js";
import { onRightDrag, onShiftWheel, zoom } from "./pointer.js";
import { outline, recut } from "./recut.js";

const { Niivue, NVImage, DRAG_MODE, SLICE_TYPE } = globalThis.niivue;

// Centre and width in HU, as radiologists set them, by modality; the first is shown first.
const BONE = [480, 2500];
const WINDOWS = {
  ct: {
    [t("brain")]: [40, 80],
    [t("subdural")]: [75, 215],
    [t("stroke")]: [40, 40],
    [t("bone")]: BONE,
  },
  chest_ct: { [t("lung")]: [-600, 1500], [t("mediastinum")]: [40, 400], [t("bone")]: BONE },
};
const PLANES = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
// The step, in voxels, that leads to the next slice of a view; of all planes the axial one is large.
const UP = { coronal: [0, 1, 0], sagittal: [1, 0, 0] };
const AXIAL_UP = [0, 0, 1];
const NEARER = 1.25;
const OVERVIEW = [
  { sliceType: SLICE_TYPE.AXIAL, position: [0, 0, 0.61, 1] },
  { sliceType: SLICE_TYPE.CORONAL, position: [0.63, 0, 0.37, 0.33] },
  { sliceType: SLICE_TYPE.SAGITTAL, position: [0.63, 0.34, 0.37, 0.32] },
  { sliceType: SLICE_TYPE.RENDER, position: [0.63, 0.67, 0.37, 0.33] },
];
// Where no graphics card helps, a picture in 3-D takes seconds: it is drawn when it is asked for.
const OVERVIEW_SLOW = [
  OVERVIEW[0],
  { sliceType: SLICE_TYPE.CORONAL, position: [0.63, 0, 0.37, 0.49] },
  { sliceType: SLICE_TYPE.SAGITTAL, position: [0.63, 0.51, 0.37, 0.49] },
];
const OPTIONS = {
  isRadiologicalConvention: true,
  showAllOrientationMarkers: true,
  sagittalNoseLeft: true,
  multiplanarForceRender: false,
  isOrientCube: true, // sides of the 3-D picture
  backColor: [0, 0, 0, 1],
  fontColor: [0.8, 0.83, 0.86, 1],
  fontMinPx: 14,
  fontSizeScaling: 0.3,
  crosshairColor: [0.35, 0.75, 0.95, 0.7],
  crosshairWidth: 0.6,
  crosshairWidthUnit: "mm",
  crosshairGap: 12,
  rulerColor: [1, 0.85, 0.3, 1],
  measureLineColor: [1, 0.85, 0.3, 1],
  measureTextColor: [1, 0.85, 0.3, 1],
  rulerWidth: 2,
  measureTextHeight: 0.07,
  dragAndDropEnabled: false,
  viewModeHotKey: "",
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  logLevel: "error",
  loadingText: t("loading"),
};
const MAP_COLOURS = "warm";
const MARKS = { R: [70, 70], G: [235, 235], B: [215, 215], A: [0, 255], I: [0, 255] };
const CUT_OFF = 2; // NiiVue's name for nothing at all below the lowest value
const WEAK = -Infinity;

export const nv = new Niivue(OPTIONS);
export const layers = { scan: null, map: null, mask: null };
const report = data.report;
const windows = WINDOWS[data.study.modality || data.study.guess]; // none for MR
let other = null; // the viewer of the reconstruction
let stored = null; // voxels of the mask as the report has it
let marked = null; // voxels of the mask as it is cut
let overview = OVERVIEW;
let shownView = "overview";
let first = true; // until the first picture stands

// ---- layers --------------------------------------------------------------------------------

export async function open() {
  nv.addColormap("marks", MARKS);
  const coming = [load("scan", "gray"), load("map", MAP_COLOURS), load("mask", "marks")];
  await firstLook(); // the files are on their way meanwhile
  const begin = performance.now();
  await nv.attachToCanvas(byId("canvas"));
  byId("viewer").dataset.graphics = seconds(performance.now() - begin);
  leaveGradients(nv);
  [layers.scan, layers.map, layers.mask] = await Promise.all(coming);
  chooseWindow();
  if (layers.map) prepareOverlays();
  overview = isSoftware() ? OVERVIEW_SLOW : OVERVIEW;
  nv.setCustomLayout(OVERVIEW_SLOW);
  nv.volumes = Object.values(layers).filter(Boolean);
  nv.setVolume(layers.scan, 0);
  jumpToFirst();
  first = false;
  onRightDrag(byId("canvas"), () => [layers.scan.cal_min, layers.scan.cal_max], setOwnWindow);
  const { gl } = nv;
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits for the picture
  byId("viewer").dataset.seconds = seconds(performance.now()); // since the page was asked for
  byId("viewer").dataset.ready = "true";
  byId("first-look")?.remove();
  requestAnimationFrame(() => setView("overview"));
}

// A picture that the server drew stands until the graphics do: without a card that takes long.
async function firstLook() {
  await byId("first-look")?.decode().catch(() => byId("first-look").remove());
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))); // it is painted
  if (byId("first-look")) byId("viewer").dataset.first = seconds(performance.now());
}

// NiiVue computes the gradients of a scan for a lit rendering, which is not used here, whenever a
// window changes. Without a graphics card that takes longest: one pixel of each slice is enough.
function leaveGradients(viewer) {
  const quick = {
    uniforms: viewer.passThroughShader.uniforms,
    use(gl) {
      viewer.passThroughShader.use(gl);
      gl.viewport(0, 0, 1, 1);
    },
  };
  viewer.blurShader = quick;
  viewer.gradientPrePassShader = quick;
  viewer.sobelFirstOrderShader = quick;
}

const seconds = (ms) => (ms / 1000).toFixed(2);

function load(kind, colormap) {
  const url = data.urls[kind];
  return url ? NVImage.loadFromUrl({ url, name: `${kind}.nii.gz`, colormap }) : null;
}

function isSoftware() {
  const info = nv.gl.getExtension("WEBGL_debug_renderer_info");
  const name = nv.gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : nv.gl.RENDERER);
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

function prepareOverlays() {
  stored = layers.mask?.img.slice() ?? null;
  marked = stored;
  const top = Math.max(report.maximum?.value ?? 0, layers.map.global_max ?? 0, report.threshold);
  layers.map.cal_min = report.threshold;
  layers.map.cal_max = Math.max(top, report.threshold * 1.01);
  layers.map.colormapType = CUT_OFF;
  layers.map.opacity = Number(byId("map-opacity").value);
  if (layers.mask) {
    layers.mask.opacity = Number(byId("mask-opacity").value);
    layers.mask.cal_min = 0.5;
    layers.mask.cal_max = 1;
    layers.mask.colormapType = CUT_OFF;
    fillMask();
  }
  const slider = byId("threshold");
  slider.min = 0;
  slider.max = top;
  slider.step = "any";
  slider.value = report.threshold;
  showCut(null);
}

// Layers above the scan share one texture: the first of them begins it anew.
function refreshOverlays() {
  if (!layers.map) return;
  nv.refreshLayers(layers.map, 1);
  if (layers.mask) nv.refreshLayers(layers.mask, 2);
  nv.drawScene();
}

// What the layer of the mask shows: what is marked, or its border.
function fillMask() {
  const dims = layers.mask.hdr.dims.slice(1, 4);
  const [a, b] = layers.mask.permRAS.map((axis) => Math.abs(axis) - 1);
  const shown = byId("outline").checked ? outline(marked, dims, a, b) : marked;
  layers.mask.img.set(shown);
}

export const currentMask = () => marked;
export const threshold = () => (layers.map ? Number(byId("threshold").value) : null);
export const isMoved = () => threshold() !== report.threshold;

function cutAgain() {
  if (!layers.mask) return;
  if (!isMoved()) {
    marked = stored;
    showCut(null);
  } else {
    const strong = byId("strong");
    const peak = strong?.checked ? Number(strong.value) : WEAK;
    const dims = layers.map.hdr.dims.slice(1, 4);
    const cut = recut(layers.map.img, dims, threshold(), peak);
    marked = cut.marked;
    showCut(cut);
  }
  fillMask();
  layers.map.cal_min = Math.min(threshold(), layers.map.cal_max * 0.99);
  refreshOverlays();
}

function showCut(cut) {
  const sides = layers.map.hdr.pixDims.slice(1, 4).map(Math.abs);
  const voxel = sides[0] * sides[1] * sides[2];
  const ml = (cut ? cut.voxels * voxel : report.anomalous_mm3 ?? 0) / 1000;
  const pieces = cut ? cut.pieces : report.n_components ?? 0;
  byId("cut").textContent = `${fixed(ml, 1)} ml, ${t("pieces")}${t(":")} ${pieces}`;
  byId("threshold-value").textContent = short(threshold());
  byId("threshold-back").hidden = cut === null;
}

// ---- windows -------------------------------------------------------------------------------

function chooseWindow() {
  const choice = byId("window");
  if (!windows) {
    choice.replaceChildren(new Option(t("automatic"), "auto"));
    robust();
    return;
  }
  for (const [name, [centre, width]] of Object.entries(windows)) {
    choice.append(new Option(`${name} ${centre}/${width}`, `${centre},${width}`));
  }
  applyWindow(choice.value);
}

function robust() {
  layers.scan.cal_min = layers.scan.robust_min;
  layers.scan.cal_max = layers.scan.robust_max;
}

function applyWindow(value) {
  if (value === "auto") {
    robust();
  } else {
    const [centre, width] = value.split(",").map(Number);
    layers.scan.cal_min = centre - width / 2;
    layers.scan.cal_max = centre + width / 2;
  }
  if (first) return;
  refreshScan();
}

function refreshScan() {
  nv.refreshLayers(layers.scan, 0);
  refreshOverlays();
  nv.drawScene();
}

// A window of one's own has a line in the list, so that every other one can be chosen again.
function setOwnWindow(low, high) {
  const choice = byId("window");
  let own = choice.querySelector('[data-own="true"]');
  if (!own) {
    own = new Option("");
    own.dataset.own = "true";
    choice.append(own);
  }
  own.value = `${(low + high) / 2},${high - low}`;
  own.textContent = `${t("own")} ${short((low + high) / 2)}/${short(high - low)}`;
  own.selected = true;
  layers.scan.cal_min = low;
  layers.scan.cal_max = high;
  soon(refreshScan);
}

// ---- views and tools -----------------------------------------------------------------------

function setView(view) {
  const plane = PLANES[view];
  const layout = plane === undefined ? overview : [{ sliceType: plane, position: [0, 0, 1, 1] }];
  for (const one of [nv, other]) one?.setCustomLayout(layout);
  shownView = view;
  press("view", view);
}

function zoomAll(factor) {
  for (const one of [nv, other]) if (one?.volumes.length) zoom(one, factor);
}

// The whole picture, in the window that is listed first.
function startAgain() {
  zoomAll(0);
  byId("window").selectedIndex = 0;
  applyWindow(byId("window").value);
}

export function setTool(tool) {
  const left = { look: DRAG_MODE.crosshair, measure: DRAG_MODE.measurement }[tool];
  nv.setMouseEventConfig({
    leftButton: { primary: left ?? DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
    rightButton: DRAG_MODE.none, // see onRightDrag
    centerButton: DRAG_MODE.pan,
  });
  if (tool !== "measure") nv.clearMeasurements();
  press("tool", tool);
  document.dispatchEvent(new CustomEvent("tool", { detail: tool }));
}

function press(kind, value) {
  for (const button of document.querySelectorAll(`[data-${kind}]`)) {
    button.setAttribute("aria-pressed", button.dataset[kind] === value);
  }
}

export function jump(mm) {
  nv.scene.crosshairPos = nv.mm2frac(mm, 0, true); // true: of an oblique scan too
  nv.createOnLocationChange();
  nv.drawScene();
}

function jumpToFirst() {
  const place = report?.components?.[0]?.peak_mm ?? report?.maximum?.mm;
  if (place) jump(place);
}

function showLocation(location) {
  const [x, y, z] = location.mm;
  const parts = [`x ${x.toFixed(0)}, y ${y.toFixed(0)}, z ${z.toFixed(0)} mm`];
  const [scan, map] = location.values;
  if (scan) parts.push(`${t("scan")} ${short(scan.value)}${windows ? " HU" : ""}`);
  if (map && layers.map) parts.push(`${t("map")} ${short(map.value)}`);
  byId("location").textContent = parts.join(" · ");
  if (other?.volumes.length) follow(other, location.mm);
}

function follow(viewer, mm) {
  viewer.scene.crosshairPos = viewer.mm2frac(mm, 0, true);
  viewer.drawScene();
}

// The scan beside what the model makes of it: the same place in both.
async function toggleReconstruction() {
  const screen = byId("screen-healthy");
  const shown = screen.hidden;
  screen.hidden = !shown;
  byId("side-by-side").setAttribute("aria-pressed", shown);
  setView(shown ? "axial" : "overview");
  if (!shown || other) return;
  other = new Niivue(OPTIONS);
  await other.attachToCanvas(byId("canvas-healthy"));
  leaveGradients(other);
  other.setCustomLayout([{ sliceType: SLICE_TYPE.AXIAL, position: [0, 0, 1, 1] }]);
  const healthy = { url: data.urls.reconstruction, name: "healthy.nii.gz", colormap: "gray" };
  await other.loadVolumes([{ ...healthy, cal_min: 0, cal_max: 1 }]);
  other.onLocationChange = (location) => follow(nv, location.mm);
  follow(other, nv.frac2mm(nv.scene.crosshairPos, 0, true));
  screen.dataset.ready = "true";
}

function step(direction) {
  nv.moveCrosshairInVox(...(UP[shownView] ?? AXIAL_UP).map((one) => one * direction));
}

// ---- controls ------------------------------------------------------------------------------

let waiting = false;
function soon(work) {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    work();
  });
}

function connectOverlays() {
  for (const kind of ["map", "mask"]) {
    byId(`${kind}-opacity`).addEventListener("input", (event) => {
      if (layers[kind]) layers[kind].opacity = Number(event.target.value);
      soon(refreshOverlays);
    });
  }
  byId("outline").addEventListener("change", () => {
    if (!layers.mask) return;
    fillMask();
    refreshOverlays();
  });
  byId("overlays").addEventListener("change", (event) => {
    for (const kind of ["map", "mask"]) {
      const chosen = Number(byId(`${kind}-opacity`).value);
      if (layers[kind]) layers[kind].opacity = event.target.checked ? chosen : 0;
    }
    refreshOverlays();
  });
  byId("threshold").addEventListener("input", () => soon(cutAgain));
  byId("strong")?.addEventListener("change", cutAgain);
  byId("threshold-back").addEventListener("click", () => {
    byId("threshold").value = report.threshold;
    cutAgain();
  });
}

function connectTools() {
  byId("window").addEventListener("change", (event) => applyWindow(event.target.value));
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => setView(button.dataset.view));
  }
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => setTool(button.dataset.tool));
  }
  byId("screenshot").addEventListener("click", () => nv.saveScene(`norma-${data.study.id}.png`));
  byId("side-by-side")?.addEventListener("click", toggleReconstruction);
  nv.onLocationChange = showLocation;
  onShiftWheel(byId("viewer"), (turn) => zoomAll(NEARER ** turn));
  // NiiVue would set a window of its own
  byId("viewer").addEventListener("dblclick", (event) => event.stopImmediatePropagation(), true);
}

function goTo(direction) {
  const jumps = [...document.querySelectorAll("#components .jump")];
  const now = jumps.indexOf(document.querySelector('#components .jump[aria-current="true"]'));
  jumps[Math.min(Math.max(now + direction, 0), jumps.length - 1)]?.click();
}

const KEYS = {
  ArrowUp: () => step(1),
  ArrowDown: () => step(-1),
  j: () => goTo(1),
  k: () => goTo(-1),
  o: () => byId("overlays")?.click(),
  1: () => setView("overview"),
  2: () => setView("axial"),
  3: () => setView("coronal"),
  4: () => setView("sagittal"),
  5: () => setView("render"),
  "+": () => zoomAll(NEARER),
  "-": () => zoomAll(1 / NEARER),
  0: startAgain,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const work = KEYS[event.key];
  if (!work || first) return;
  event.preventDefault();
  work();
}

if (byId("threshold")) connectOverlays();
connectTools();
setTool("look");
document.addEventListener("keydown", onKey);
// NiiVue's own keys would act beside these
byId("viewer").addEventListener("keydown", (event) => {
  if (event.target.tagName === "CANVAS") event.stopImmediatePropagation();
  onKey(event);
}, true);
for (const button of document.querySelectorAll("#components .jump")) {
  button.addEventListener("click", () => {
    for (const one of document.querySelectorAll("#components .jump")) {
      one.removeAttribute("aria-current");
    }
    button.setAttribute("aria-current", "true");
    jump(report.components[Number(button.dataset.component)].peak_mm);
  });
}
if (data.urls.scan) open().catch((error) => say(`${t("The viewer could not start.")} ${error.message}`, true));
