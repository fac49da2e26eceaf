// What a reader says: of the scan, of each component, and by drawing.

import { byId, data, locale, say, secondsSpent, send, t } from "./page.js";
import { plotScore } from "./plot.js";
import { currentMask, layers, nv, threshold } from "./viewer.js";

const PEN = 1;
const RUBBER = 0;
// a colour that neither the map nor the marks have
const PENCIL = { R: [0, 255], G: [0, 90], B: [0, 220], A: [0, 255], labels: ["", ""] };

async function give(said) {
  const told = await send(data.urls.opinions, {
    ...said, threshold: threshold(), seconds: secondsSpent(),
  });
  list(told);
  say(t("Saved."));
}

function list(told) {
  const line = document.createElement("li");
  const number = told.component === null ? "" : ` ${told.component + 1}`;
  const when = new Date(told.created).toLocaleString(locale, {
    dateStyle: "short", timeStyle: "short",
  });
  const parts = [when, told.user, `${t(told.kind)}${number}${t(":")} ${t(told.value)}`];
  if (told.result !== data.result) parts.push(t("of an earlier result"));
  if (told.comment) parts.push(told.comment);
  line.textContent = parts.join(" · ");
  if (told.correction) {
    const link = document.createElement("a");
    link.href = told.correction;
    link.download = "";
    link.textContent = "NIfTI";
    line.append(" · ", link);
  }
  byId("opinions").prepend(line);
}

// All that is known at the start; what one said last of the scan and its components is pressed.
async function listKnown() {
  const answer = await fetch(data.urls.opinions);
  if (!answer.ok) return;
  for (const told of await answer.json()) {
    list(told);
    // the findings of an earlier result had other numbers
    if (!told.mine || told.result !== data.result) continue;
    if (told.kind === "component") showVerdict(told.component, told.value);
    if (told.kind === "scan") byId("whole").elements.value.value = told.value;
  }
}

function showVerdict(component, value) {
  for (const one of document.querySelectorAll(`[data-verdict="${component}"] button`)) {
    one.setAttribute("aria-pressed", one.value === value);
  }
}

function connectScan() {
  const form = byId("whole");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { value, comment } = form.elements;
    try {
      await give({ kind: "scan", value: value.value, comment: comment.value.trim() });
      comment.value = "";
    } catch (error) {
      say(error.message, true);
    }
  });
}

function connectComponents() {
  for (const group of document.querySelectorAll("[data-verdict]")) {
    group.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      try {
        const component = Number(group.dataset.verdict);
        await give({ kind: "component", value: button.value, component });
        showVerdict(component, button.value);
      } catch (error) {
        say(error.message, true);
      }
    });
  }
}

// ---- drawing -------------------------------------------------------------------------------

let unsaved = false;
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault(); // the browser asks whether to leave the drawing
});

function startDrawing() {
  if (nv.drawBitmap) return;
  nv.onDrawingChanged = () => { unsaved = true; };
  nv.setDrawingEnabled(true);
  nv.setDrawOpacity(0.5);
  nv.setDrawColormap(PENCIL);
}

function setPen(value) {
  nv.setPenValue(value, false);
  for (const button of document.querySelectorAll("[data-pen]")) {
    button.setAttribute("aria-pressed", Number(button.dataset.pen) === value);
  }
}

function onTool(event) {
  const drawing = event.detail === "draw";
  byId("drawing").hidden = !drawing;
  if (drawing) {
    startDrawing();
    setPen(PEN);
  }
  nv.setDrawingEnabled(drawing);
}

function takeMask() {
  if (!layers.mask) return;
  const shown = layers.mask.img;
  layers.mask.img = currentMask();
  nv.drawBitmap.set(layers.mask.img2RAS());
  layers.mask.img = shown;
  unsaved = true;
  nv.drawAddUndoBitmap();
  nv.refreshDrawing(true);
}

function clearDrawing() {
  nv.drawBitmap.fill(0);
  unsaved = true;
  nv.drawAddUndoBitmap();
  nv.refreshDrawing(true);
}

async function packed(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Response(stream).blob();
}

async function saveDrawing() {
  try {
    const bytes = await nv.saveImage({ filename: "", isSaveDrawing: true });
    const form = new FormData();
    form.append("file", await packed(bytes), "correction.nii.gz");
    form.append("seconds", secondsSpent());
    if (threshold() !== null) form.append("threshold", threshold());
    list(await send(data.urls.corrections, form));
    unsaved = false;
    say(t("Saved."));
  } catch (error) {
    say(error.message, true);
  }
}

function connectDrawing() {
  for (const button of document.querySelectorAll("[data-pen]")) {
    button.addEventListener("click", () => setPen(Number(button.dataset.pen) ? PEN : RUBBER));
  }
  byId("pen-size").addEventListener("input", (event) => {
    nv.opts.penSize = Number(event.target.value);
  });
  byId("take-mask").addEventListener("click", takeMask);
  byId("undo").addEventListener("click", () => nv.drawUndo());
  byId("clear").addEventListener("click", clearDrawing);
  byId("save-drawing").addEventListener("click", saveDrawing);
  document.addEventListener("tool", onTool);
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !byId("drawing").hidden) {
      event.preventDefault();
      nv.drawUndo();
    }
  });
}

if (byId("whole")) {
  connectScan();
  connectComponents();
  connectDrawing();
  listKnown();
  plotScore();
}
