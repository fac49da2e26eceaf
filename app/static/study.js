// Start, cancel, removal and progress of a study. The viewer is a file of its own.
import { say, send, t } from "./page.js";

const start = document.getElementById("start");
start?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await send(`/api/studies/${start.dataset.study}/start`, { run: start.elements.run.value });
    location.reload();
  } catch (error) {
    say(error.message, true);
  }
});

const progress = document.getElementById("progress");
if (progress) {
  const id = progress.dataset.study;
  document.getElementById("cancel")?.addEventListener("click", async () => {
    try {
      await send(`/api/studies/${id}/cancel`, {});
      location.reload();
    } catch (error) {
      say(error.message, true);
    }
  });
  const state = document.querySelector(".bar .state");
  setInterval(async () => {
    const answer = await fetch(`/api/studies/${id}`).catch(() => null); // a server that starts anew
    if (!answer?.ok) return;
    const study = await answer.json();
    if (!["queued", "running"].includes(study.state)) location.reload();
    state.textContent = t(study.state);
    progress.querySelector("progress").value = study.progress;
    progress.querySelector("span").textContent = t(study.stage);
  }, 1500);
}

const remove = document.getElementById("remove");
remove?.addEventListener("click", async () => {
  try {
    await send(`/api/studies/${remove.dataset.study}/remove`, {});
    location.reload();
  } catch (error) {
    say(error.message, true);
  }
});
