// Turns events of the server into events of the page, on which htmx and the charts act.
//
// On a run's page:  live-run, live-points, live-alerts
// On the list:      live-run-<id> for each run shown; live-unknown-run when another one appears;
//                   live-missed when events may have been lost, for older runs
// On both:          live-any-alerts
import { LiveStream } from "./live_stream.js";

const KINDS = ["run", "points", "alerts"];
const PING = 20000; // milliseconds
const topic = document.body.dataset.watch;
const waiting = new Set(); // names of events that wait until the page is looked at

function announce(name) {
  if (document.hidden) waiting.add(name);
  else document.body.dispatchEvent(new CustomEvent(name, { bubbles: true }));
}

function catchUp() {
  if (document.hidden) return;
  const names = [...waiting];
  waiting.clear();
  names.forEach(announce);
}

function changed(run, kinds) {
  if (kinds.includes("alerts")) announce("live-any-alerts");
  if (topic !== "*") {
    kinds.forEach((kind) => announce(`live-${kind}`));
  } else if (document.getElementById(`run-${run}`)) {
    announce(`live-run-${run}`);
  } else if (kinds.includes("run")) {
    announce("live-unknown-run");
  }
}

// Nothing is known of what happened before there was a stream, since the page was made too.
function resync() {
  if (topic !== "*") KINDS.forEach((kind) => announce(`live-${kind}`));
  else ["live-unknown-run", "live-missed", "live-any-alerts"].forEach(announce);
}

function show(state) {
  const element = document.getElementById("link-state");
  element.hidden = false;
  if (element.dataset.state === state) return;
  element.dataset.state = state;
  element.querySelector("span").textContent = state === "live" ? "Live" : "Reconnecting …";
}

function hear(message) {
  if (message.type === "change") {
    changed(message.run, message.kinds);
    return;
  }
  show(message.type === "open" ? "live" : "lost");
  if (message.type === "open") resync();
}

function throughWorker() {
  const { port } = new SharedWorker(new URL("live_worker.js", import.meta.url), { type: "module", name: "trainsanity-live" });
  const enter = () => port.postMessage({ type: "watch", topic });
  port.onmessage = ({ data }) => hear(data);
  enter();
  setInterval(enter, PING);
  addEventListener("pagehide", () => port.postMessage({ type: "leave" }));
  addEventListener("pageshow", (event) => {
    if (event.persisted) enter();
  });
}

// Where workers cannot be shared, a tab in the background gives its connection back.
function alone() {
  const stream = new LiveStream(hear);
  const follow = () => (document.hidden ? stream.close() : stream.watch([topic]));
  document.addEventListener("visibilitychange", follow);
  addEventListener("pagehide", () => stream.close());
  follow();
}

export function listen() {
  if (!topic) return;
  document.addEventListener("visibilitychange", catchUp);
  if (typeof SharedWorker === "function") throughWorker();
  else alone();
}
