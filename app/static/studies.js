// The list: uploads with what became of each file, starts and cancels, j/k/Enter, a fresh look
// while anything waits. Names of files are shown here, and never kept by the server.
"use strict";

const csrf = document.querySelector('meta[name="csrf-token"]').content;
const form = document.getElementById("upload");
const outcome = document.getElementById("upload-outcome");
const table = document.getElementById("studies");
const AT_ONCE = 2; // files that are sent at the same time
const LOOK = 2000; // ms between two looks while anything waits

// upload

const waiting = [];
let sending = 0;

function enqueue(files, folders = new Set()) {
  for (const file of files) {
    const line = document.createElement("li");
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = 0;
    bar.setAttribute("aria-label", file.name);
    const words = document.createElement("span");
    line.append(`${file.name} `, bar, " ", words);
    outcome.append(line);
    if (folders.has(file)) {
      tell(file, line, [failure(form.dataset.folder)]);
      continue;
    }
    if (file.size > Number(form.dataset.most)) {
      tell(file, line, [failure(form.dataset.large)]);
      continue;
    }
    waiting.push({ file, line, bar, words });
  }
  pump();
}

function pump() {
  while (sending < AT_ONCE && waiting.length) {
    sending += 1;
    send(waiting.shift()).finally(() => {
      sending -= 1;
      refresh();
      pump();
    });
  }
}

function send({ file, line, bar, words }) {
  words.textContent = form.dataset.sending;
  const body = new FormData();
  body.append("run", form.elements.run.value);
  body.append("label", form.elements.label.value);
  body.append("file", file);
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", form.getAttribute("action"));
    request.setRequestHeader("X-CSRF-Token", csrf);
    request.upload.onprogress = (event) => { bar.value = event.loaded / event.total; };
    request.upload.onload = () => {
      bar.removeAttribute("value");
      words.textContent = form.dataset.reading;
    };
    request.onload = () => { tell(file, line, answerOf(request)); resolve(); };
    request.onerror = () => { tell(file, line, [failure(form.dataset.failed)]); resolve(); };
    request.send(body);
  });
}

const failure = (reason) => ({ status: "refused", reason });

function answerOf(request) {
  try {
    const told = JSON.parse(request.responseText);
    return Array.isArray(told) ? told : [failure(told.detail)];
  } catch {
    return [failure(`${request.status} ${request.statusText}`)];
  }
}

function tell(file, line, told) {
  line.replaceChildren(`${file.name}: `);
  for (const one of told) {
    const part = document.createElement("span");
    part.className = one.status;
    const reason = sentence((one.reason ?? "").replace(`${file.name}: `, ""));
    part.textContent = `${form.dataset[one.status]} ${one.status === "known" ? "" : reason} `;
    if (one.study) {
      const link = document.createElement("a");
      link.href = `/studies/${one.study.id}`;
      link.textContent = one.study.label || one.study.id.slice(0, 8);
      part.append(link);
    }
    line.append(part);
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enqueue(form.elements.file.files);
  form.elements.file.value = "";
});

document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  form.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) form.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  form.classList.remove("over");
  const files = [];
  const folders = new Set(); // which a browser hands over as a file that cannot be read
  for (const item of event.dataTransfer.items) {
    const file = item.getAsFile();
    if (!file) continue;
    files.push(file);
    if (item.webkitGetAsEntry?.()?.isDirectory) folders.add(file);
  }
  enqueue(files, folders);
});

// start and cancel

table.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  const choice = button.closest("td").querySelector("select");
  const run = choice?.value;
  if (run === "") {
    choice.focus(); // nobody knows yet what this scan is
    return;
  }
  button.disabled = true;
  const answer = await fetch(`/api/studies/${button.dataset.study}/${button.dataset.action}`, {
    method: "POST",
    headers: { "X-CSRF-Token": csrf, "Content-Type": "application/json" },
    body: JSON.stringify(run ? { run } : {}),
  });
  if (!answer.ok && answer.status !== 409) {
    button.after(` ${(await answer.json()).detail}`);
    return;
  }
  refresh();
});

// a fresh look

const moves = () => table.querySelector('tr[data-state="queued"], tr[data-state="running"]');

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const own = document.activeElement?.closest("tr")?.dataset.study;
  if (document.activeElement?.closest("#studies select")) return; // somebody is choosing
  table.tBodies[0].replaceWith(page.querySelector("#studies tbody"));
  for (const id of ["count", "forsaken"]) {
    document.getElementById(id).replaceChildren(...page.getElementById(id).childNodes);
  }
  if (own) table.querySelector(`tr[data-study="${own}"] a`)?.focus();
}

setInterval(() => {
  if (!document.hidden && moves()) refresh();
}, LOOK);

// keyboard: j and k go down and up, Enter opens, / searches

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector('input[name="search"]').focus();
    return;
  }
  const step = { j: 1, k: -1 }[event.key];
  const links = [...table.querySelectorAll("tbody tr td:first-child a")];
  if (!step || !links.length) return;
  const place = links.indexOf(document.activeElement?.closest("tr")?.querySelector("a"));
  links[Math.min(Math.max(place + step, 0), links.length - 1)].focus();
});
