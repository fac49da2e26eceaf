// Start, cancel and progress of a study. The viewer is a file of its own.
"use strict";

const token = document.querySelector('meta[name="csrf-token"]').content;

function post(path, body) {
  return fetch(path, {
    method: "POST",
    headers: { "X-CSRF-Token": token, "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
}

const start = document.getElementById("start");
start?.addEventListener("submit", async (event) => {
  event.preventDefault();
  await post(`/api/studies/${start.dataset.study}/start`, { run: start.elements.run.value });
  location.reload();
});

const progress = document.getElementById("progress");
if (progress) {
  const id = progress.dataset.study;
  document.getElementById("cancel").addEventListener("click", async () => {
    await post(`/api/studies/${id}/cancel`);
    location.reload();
  });
  setInterval(async () => {
    const study = await (await fetch(`/api/studies/${id}`)).json();
    if (!["queued", "running"].includes(study.state)) location.reload();
    progress.querySelector("progress").value = study.progress;
    progress.querySelector("span").textContent = study.stage;
  }, 1500);
}
