// What every page does: the theme button, ages that grow, and live updates.
import { listen } from "./live.js";

const THEMES = ["system", "light", "dark"];
const WORDS = { system: "as the system has them", light: "light", dark: "dark" };
const root = document.documentElement;

function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Not kept where storage is switched off; it holds for this page.
  }
  const button = document.getElementById("theme");
  button.setAttribute("aria-label", `Colours: ${WORDS[theme]}`);
  button.title = `Colours: ${WORDS[theme]}`;
  document.dispatchEvent(new CustomEvent("theme"));
}

document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme ?? "system";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
setTheme(root.dataset.theme ?? "system");

// As formats.ago on the server.
function ago(then) {
  const age = Date.now() / 1000 - then;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (age >= size) return `${Math.floor(age / size)} ${unit} ago`;
  }
  return age < 10 ? "just now" : `${Math.floor(age)} s ago`;
}

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const text = ago(Date.parse(time.dateTime) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}, 15000);

// A panel closes when its work is done elsewhere.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// A press ends on what it began on: nothing moves in between, or the click would be lost.
const LONGEST_PRESS = 10000; // milliseconds; of some presses the end is not told
let held = Promise.resolve();
let release = null;
let limit = 0;
let letting = 0;

function letGo() {
  clearTimeout(limit);
  clearTimeout(letting);
  letting = setTimeout(() => { // after the click
    release?.();
    release = null;
  });
}

document.addEventListener("pointerdown", () => {
  clearTimeout(limit);
  clearTimeout(letting); // the press before is not over yet: what it held, this one holds
  limit = setTimeout(letGo, LONGEST_PRESS);
  if (release) return;
  held = new Promise((resolve) => {
    release = resolve;
  });
});
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, letGo);

// Held is the last step before the page changes: a press may begin while an answer is still read.
document.addEventListener("htmx:before:request", ({ detail }) => {
  const fetched = detail.ctx.fetch;
  detail.ctx.fetch = async (...request) => {
    const response = await fetched(...request);
    const read = response.text.bind(response);
    response.text = async () => {
      const text = await read();
      await held;
      return text;
    };
    return response;
  };
});

// Whoever pressed a button that is gone now goes on from what it belonged to.
const places = new WeakMap(); // one change of the page -> id of what the focus was in before it

document.addEventListener("htmx:before:swap", ({ detail }) => {
  places.set(detail.ctx, document.activeElement?.closest("article[id]")?.id);
});
document.addEventListener("htmx:after:swap", ({ detail }) => {
  const place = places.get(detail.ctx);
  if (!place || document.activeElement !== document.body) return;
  const article = document.getElementById(place);
  const next = article?.checkVisibility()
    ? article.querySelector(".actions button, .actions summary")
    : article?.closest("details")?.querySelector("summary");
  next?.focus({ preventScroll: true });
});

listen();
