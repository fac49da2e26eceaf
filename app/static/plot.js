// The score of the scan among those of healthy scans, as a small SVG.

import { byId, data, short, t } from "./page.js";

const WIDTH = 300;
const HEIGHT = 64;
const LINE = 38; // y of the axis
const MARGIN = 12;

function draw(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

export async function plotScore() {
  const place = byId("score-plot");
  if (!place || !data.urls.reference || data.report?.score == null) return;
  const answer = await fetch(data.urls.reference);
  if (!answer.ok) return;
  const { scores } = await answer.json();
  const all = [...scores, data.report.score];
  const low = Math.min(...all);
  const high = Math.max(...all);
  const x = (score) => MARGIN + ((score - low) / (high - low || 1)) * (WIDTH - 2 * MARGIN);

  const said = `${t("Score")} ${short(data.report.score)}; ${t("healthy scans")}${t(":")} `
    + `${scores.length}, ${short(Math.min(...scores))} – ${short(Math.max(...scores))}`;
  const plot = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said });
  plot.append(draw("line", { x1: MARGIN, x2: WIDTH - MARGIN, y1: LINE, y2: LINE, class: "axis" }));
  for (const score of scores) {
    plot.append(draw("circle", { cx: x(score), cy: LINE, r: 4, class: "healthy" }));
  }
  const here = x(data.report.score);
  const side = here > WIDTH - 60 ? "end" : here < 60 ? "start" : "middle";
  plot.append(
    draw("line", { x1: here, x2: here, y1: 20, y2: LINE + 8, class: "scan" }),
    draw("text", { x: here, y: 14, "text-anchor": side, class: "scan" },
      `${t("this scan")} ${short(data.report.score)}`),
    draw("text", { x: MARGIN, y: HEIGHT - 4 }, short(low)),
    draw("text", { x: WIDTH - MARGIN, y: HEIGHT - 4, "text-anchor": "end" }, short(high)),
  );
  place.replaceChildren(plot);
}
