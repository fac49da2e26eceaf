// Start, cancel, removal and progress of a study. The viewer is a file of its own.
import { say, send } from "./page.js";

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
  document.getElementById("cancel").addEventListener("click", async () => {
    try {
      await send(`/api/studies/${id}/cancel`, {});
      location.reload();
    } catch (error) {
      say(error.message, true);
    }
  });
  setInterval(async () => {
    const study = await (await fetch(`/api/studies/${id}`)).json();
    if (!["queued", "running"].includes(study.state)) location.reload();
    progress.querySelector("progress").value = study.progress;
    progress.querySelector("span").textContent = study.stage;
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
