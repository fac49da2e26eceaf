// What the scripts of a study's page share: its data, its texts, and how it speaks to the server.

export const data = JSON.parse(document.getElementById("viewer-data").textContent);
const texts = JSON.parse(document.getElementById("texts").textContent);

export const t = (key) => texts[key] ?? key;
export const byId = (id) => document.getElementById(id);

// The browser's own kind of a language where it has one: English days come before months in Britain.
const language = document.documentElement.lang;
export const locale = navigator.languages.find((one) => one.startsWith(language)) ?? language;

// Numbers as the language of the page writes them: three digits are enough of a score.
const written = (value, form) => value.toLocaleString(language, { useGrouping: false, ...form });
export const short = (value) => (
  Number.isFinite(value) ? written(value, { maximumSignificantDigits: 3 }) : "–"
);
export const fixed = (value, digits) => written(value, {
  minimumFractionDigits: digits, maximumFractionDigits: digits,
});

export async function send(path, body) {
  const headers = { "X-CSRF-Token": data.csrf };
  const isForm = body instanceof FormData;
  if (!isForm) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: "POST", headers, body: isForm ? body : JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({ detail: answer.statusText }));
  if (!answer.ok) throw new Error(t(sentence(told.detail)));
  return told;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// What went well goes after a while, so that the next one is seen to be new.
let last = 0;
export function say(text, isError = false) {
  const line = byId("said");
  line.textContent = text;
  line.classList.toggle("error", isError);
  clearTimeout(last);
  if (!isError) last = setTimeout(() => { line.textContent = ""; }, 4000);
}

// Seconds that the page was in view: a reader who does something else is not reading.
let seen = 0;
let since = document.hidden ? null : performance.now();
document.addEventListener("visibilitychange", () => {
  if (since !== null) seen += performance.now() - since;
  since = document.hidden ? null : performance.now();
});
export function secondsSpent() {
  const now = since === null ? 0 : performance.now() - since;
  return Math.round((seen + now) / 1000);
}
