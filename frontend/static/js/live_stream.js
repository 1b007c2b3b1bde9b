// The live stream of the server, for a set of topics: run ids, or "*" for all runs.
import { root } from "./root.js";

const FIRST_DELAY = 1000; // milliseconds
const LONGEST_DELAY = 30000;
const MOST_TOPICS = 100; // that the server takes; who watches more hears of all runs

export class LiveStream {
  // tell(message): {type: "open" | "change" | "lost", ...}
  constructor(tell) {
    this.tell = tell;
    this.topics = "";
    this.source = null;
    this.timer = 0;
    this.delay = FIRST_DELAY;
  }

  watch(topics) {
    const all = [...new Set(topics)].sort();
    const wanted = (all.length > MOST_TOPICS ? ["*"] : all).join("\n");
    if (wanted === this.topics) return;
    this.topics = wanted;
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    if (!this.topics) return;
    const query = new URLSearchParams(this.topics.split("\n").map((topic) => ["watch", topic]));
    const source = new EventSource(`${root}live?${query}`);
    this.source = source;
    source.addEventListener("open", () => {
      this.delay = FIRST_DELAY;
    });
    // Sent by the server once it listens: whatever happens from here on will be told.
    source.addEventListener("ready", () => this.tell({ type: "open" }));
    source.addEventListener("change", (event) => this.tell({ type: "change", ...JSON.parse(event.data) }));
    // The server ends a stream in good order now and then: nothing is lost, and nothing is shown.
    source.addEventListener("again", () => this.connect());
    source.addEventListener("error", () => this.lost(source));
  }

  lost(source) {
    if (source !== this.source) return;
    this.tell({ type: "lost" });
    // The browser itself comes back unless the server has answered with an error.
    if (source.readyState !== EventSource.CLOSED) return;
    const jitter = 0.7 + 0.6 * Math.random();
    this.timer = setTimeout(() => this.connect(), this.delay * jitter);
    this.delay = Math.min(LONGEST_DELAY, 2 * this.delay);
  }

  close() {
    this.topics = "";
    this.connect();
  }
}
