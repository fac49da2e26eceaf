// The list: upload with what became of each file, j/k/Enter, and a fresh look while the queue moves.
"use strict";

const csrf = document.querySelector('meta[name="csrf-token"]').content;
const form = document.getElementById("upload");
const outcome = document.getElementById("upload-outcome");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/api/studies", {
    method: "POST", headers: { "X-CSRF-Token": csrf }, body: new FormData(form),
  });
  const told = await answer.json();
  const lines = Array.isArray(told) ? told : [{ file: "", status: "refused", reason: told.detail }];
  outcome.replaceChildren(...lines.map((one) => {
    const line = document.createElement("li");
    line.textContent = `${one.file}: ${one.status}. ${one.reason}`;
    return line;
  }));
  if (lines.every((one) => one.status !== "refused")) location.reload();
});

const rows = [...document.querySelectorAll("#studies tbody tr")];
let place = -1;
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea, button")) return;
  const step = { j: 1, k: -1 }[event.key];
  if (step && rows.length) {
    place = Math.min(Math.max(place + step, 0), rows.length - 1);
    rows[place].querySelector("a").focus();
  }
});
