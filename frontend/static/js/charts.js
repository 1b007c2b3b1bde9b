// All charts of a page: made when they come into view, and looking at the same steps.
import { Chart } from "./chart.js";
import { whole } from "./numbers.js";

const PACE = 1000; // milliseconds between two looks for new points
const charts = new Map(); // element -> Chart
const inView = new Set();

const shared = {
  range: null,
  canDrag: matchMedia("(pointer: fine)").matches,
  pointed: null, // the step under the pointer
  source: null,

  hover(step, source) {
    if (this.source && this.source !== source) return; // an echo of our own
    this.source = source;
    const frameIsDue = this.pointed === null;
    this.pointed = step;
    if (frameIsDue) requestAnimationFrame(() => this.spread());
  },

  spread() {
    for (const chart of drawn()) {
      if (chart === this.source) chart.readOut(this.pointed);
      else chart.pointAt(this.pointed);
    }
    this.pointed = null;
    this.source = null;
  },

  leave(source) {
    if (this.source && this.source !== source) return;
    this.source = source;
    for (const chart of drawn()) {
      if (chart === source) chart.readOut();
      else chart.pointAway();
    }
    this.source = null;
  },

  zoom(range) {
    if (String(range) === String(this.range)) return;
    this.range = range;
    showRange(range);
    for (const chart of drawn()) chart.load();
  },
};

function drawn() {
  return [...inView].map((element) => charts.get(element)).filter((chart) => chart?.isDrawn);
}

// What came into view is made, or brought to the range and the step that the others show.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) {
        inView.delete(target);
        continue;
      }
      inView.add(target);
      const chart = charts.get(target) ?? adopt(target);
      if (!chart.isDrawn) chart.create();
      else if (String(chart.range) !== String(shared.range)) chart.load();
      else chart.follow();
    }
  },
  { rootMargin: "200px" },
);

function adopt(element) {
  const chart = new Chart(element, shared);
  charts.set(element, chart);
  return chart;
}

function sweep() {
  for (const [element, chart] of charts) {
    if (element.isConnected) {
      chart.keepUp();
      continue;
    }
    chart.remove();
    charts.delete(element);
    inView.delete(element);
    watcher.unobserve(element);
  }
  for (const element of document.querySelectorAll("figure[data-chart]:not([data-live-watched])")) {
    element.dataset.liveWatched = "";
    watcher.observe(element);
  }
}

function showRange(range) {
  const reset = document.getElementById("zoom-reset");
  reset.hidden = !range;
  if (range) reset.querySelector("span").textContent = `Steps ${whole(range[0])} to ${whole(range[1])}`;
}

let nextLook = 0;
let timer = 0;

function look() {
  clearTimeout(timer);
  const wait = nextLook - Date.now();
  if (wait > 0) {
    timer = setTimeout(look, wait);
    return;
  }
  nextLook = Date.now() + PACE;
  for (const chart of drawn()) chart.follow();
}

function redraw() {
  for (const chart of charts.values()) if (chart.isDrawn) chart.draw();
}

document.body.addEventListener("live-points", look);
document.body.addEventListener("htmx:after:swap", sweep);
document.addEventListener("theme", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.getElementById("zoom-reset").addEventListener("click", () => shared.zoom(null));
sweep();
