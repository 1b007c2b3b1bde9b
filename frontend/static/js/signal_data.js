// Asks for samples. A page may hold dozens of charts and the browser six connections, so charts
// queue here and leave some for everything else.
import { root } from "./root.js";

const AT_ONCE = 3;
let running = 0;
const queue = [];

export async function fetchData(run, names, { first, last, points }) {
  if (running >= AT_ONCE) await new Promise((resolve) => queue.push(resolve));
  running++;
  try {
    return await ask(run, names, { first, last, points });
  } finally {
    running--;
    queue.shift()?.();
  }
}

async function ask(run, names, { first, last, points }) {
  const query = new URLSearchParams(names.map((name) => ["name", name]));
  query.set("points", points);
  if (first !== undefined) query.set("first_step", first);
  if (last !== undefined) query.set("last_step", last);
  const response = await fetch(`${root}api/v1/runs/${encodeURIComponent(run)}/signals/data?${query}`);
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? `the server answered ${response.status}`);
  return body.signals;
}
