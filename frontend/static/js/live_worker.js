// One stream for all tabs: a browser opens six connections to a server at a time, and a stream in
// each tab would use them up with the sixth tab.
import { LiveStream } from "./live_stream.js";

const FORGET_AFTER = 180000; // milliseconds; a tab in the background may ping once a minute
const tabs = new Map(); // port -> {topic, seen}
let isOpen = false;

const stream = new LiveStream((message) => {
  if (message.type !== "change") isOpen = message.type === "open";
  for (const [port, tab] of tabs) {
    const concerns = message.type !== "change" || tab.topic === "*" || tab.topic === message.run;
    if (concerns) port.postMessage(message);
  }
});

function rewatch() {
  stream.watch([...tabs.values()].map((tab) => tab.topic));
}

function forgetGoneTabs() {
  const now = Date.now();
  for (const [port, tab] of tabs) if (now - tab.seen > FORGET_AFTER) tabs.delete(port);
  rewatch();
}

self.addEventListener("connect", (event) => {
  const port = event.ports[0];
  port.onmessage = ({ data }) => {
    if (data.type === "leave") {
      tabs.delete(port);
    } else {
      const known = tabs.get(port)?.topic === data.topic;
      tabs.set(port, { topic: data.topic, seen: Date.now() });
      const before = stream.topics;
      rewatch();
      // The stream already brings what this tab asks for, so no "open" will come of itself.
      if (!known && isOpen && stream.topics === before) port.postMessage({ type: "open" });
      return;
    }
    rewatch();
  };
});

setInterval(forgetGoneTabs, FORGET_AFTER / 3);
