// One chart: fetches what it draws, follows the run, and goes down to single samples when zoomed.
import { CONFIG, colour, faded, frame, shapeOf, stylesFor } from "./chart_style.js";
import { figure, whole } from "./numbers.js";
import { Series } from "./series.js";
import { fetchData } from "./signal_data.js";

const MOST_PLACES = 1000; // drawn for each witness
const FEW_STEPS = 6; // so few get a tick each
const FEW_PLACES = 60; // so few are drawn as dots too

export class Chart {
  // shared: what all charts of the page look at together, see charts.js
  constructor(element, shared) {
    this.element = element;
    this.shared = shared;
    this.plot = element.querySelector(".plot");
    this.log = false;
    this.range = null; // the range that is drawn; null: everything
    this.revision = 0;
    this.busy = null;
    this.readElement();
  }

  readElement() {
    const { signals, labels, words } = this.element.dataset;
    this.signals = signals;
    this.names = JSON.parse(signals);
    this.labels = JSON.parse(labels);
    this.words = JSON.parse(words);
    this.styles = stylesFor(this.names);
    this.series = this.names.map((name) => new Series(name));
    this.off = new Set();
    this.makeLegend();
  }

  // An update of the page may have given the same place to other signals.
  keepUp() {
    if (this.element.dataset.signals === this.signals) return;
    this.readElement();
    if (this.isDrawn) this.load();
  }

  get isDrawn() {
    return this.plot.classList.contains("js-plotly-plot");
  }

  create() {
    this.created ??= this.make();
    return this.created;
  }

  async make() {
    await this.load();
    if (!this.isDrawn) {
      this.created = null; // the server could not be asked; tried again when it comes into view
      return;
    }
    this.plot.on("plotly_hover", (event) => this.shared.hover(event.xvals[0], this));
    this.plot.on("plotly_unhover", () => this.shared.leave(this));
    this.plot.on("plotly_relayout", (change) => this.zoomed(change));
    this.plot.on("plotly_doubleclick", () => this.shared.zoom(null));
  }

  // Reads the range anew: thinned where it is long, sample by sample where it is short.
  load() {
    return this.alone(async () => {
      const range = this.shared.range;
      const answer = await this.ask(this.names, range?.[0], range?.[1]);
      this.range = range;
      this.series.forEach((series) => series.clear());
      this.take(answer);
      await this.draw();
    });
  }

  // Adds what came after the last step drawn of each witness: the cost follows what is new, and
  // some are read later than others of the same steps.
  async follow() {
    await this.alone(async () => {
      const end = this.range?.[1];
      const unfinished = this.series.filter(({ lastStep }) => lastStep < (end ?? Infinity));
      const byLastStep = [...Map.groupBy(unfinished, ({ lastStep }) => lastStep)];
      const answers = await Promise.all(
        byLastStep.map(([last, series]) => this.ask(series.map(({ name }) => name), last + 1, end)),
      );
      if (this.take(answers.flat())) await this.draw();
    });
    // Too much by now to be drawn place by place.
    if (this.places > 2 * MOST_PLACES * this.series.length) await this.load();
  }

  ask(names, first, last) {
    return fetchData(this.element.dataset.run, names, { first, last, points: MOST_PLACES });
  }

  // One piece of work at a time; a wish that comes meanwhile is served afterwards.
  async alone(work) {
    while (this.busy) await this.busy.catch(() => {});
    this.busy = work();
    try {
      await this.busy;
      this.element.dataset.liveState = "ready";
    } catch (error) {
      this.fail(error);
    } finally {
      this.busy = null;
    }
  }

  take(answer) {
    let added = 0;
    for (const columns of answer) {
      const series = this.series.find(({ name }) => name === columns.name);
      if (!series) continue;
      series.append(columns);
      added += columns.step.length;
    }
    return added;
  }

  get places() {
    return this.series.reduce((sum, series) => sum + series.step.length, 0);
  }

  get lastStep() {
    return Math.max(-1, ...this.series.map((series) => series.lastStep));
  }

  get firstStep() {
    return Math.min(Infinity, ...this.series.map((series) => series.step[0] ?? Infinity));
  }

  // In steps, of what is drawn.
  get width() {
    const [first, last] = this.range ?? [this.firstStep, this.lastStep];
    return last - first;
  }

  draw() {
    const { Plotly } = window;
    const layout = frame({ range: this.range, log: this.log, canDrag: this.shared.canDrag });
    layout.yaxis = { ...layout.yaxis, ...this.height() };
    if (this.width <= FEW_STEPS) layout.xaxis.dtick = 1; // there is no step between two steps
    layout.datarevision = ++this.revision; // series grow in place, which Plotly would not notice
    layout.shapes = this.marks();
    if (layout.shapes.length) layout.margin.t = 22;
    this.count();
    this.readOut();
    if (!this.range) this.summarize();
    this.element.dataset.liveLast = this.lastStep;
    return Plotly.react(this.plot, this.traces(), layout, CONFIG);
  }

  traces() {
    // The first witness is drawn last, on top of the others.
    const order = this.series.map((series, i) => [series, i]).reverse();
    const traces = order.flatMap(([series, i]) => {
      const [variable, dash] = this.styles[i];
      const ink = colour(variable);
      const common = { x: series.step, hoverinfo: "skip", visible: !this.off.has(series.name), connectgaps: false };
      const edge = { ...common, type: "scatter", mode: "lines", line: { width: 0.5, color: faded(ink, 0.3) } };
      const main = {
        ...common,
        type: "scatter",
        y: series.value,
        hoverinfo: "none",
        name: series.name,
        mode: series.step.length <= FEW_PLACES ? "lines+markers" : "lines",
        line: { color: ink, width: 1.75, dash, shape: shapeOf(series.name) },
        marker: { color: ink, size: 4 },
      };
      if (series.exact) return [main];
      return [{ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: faded(ink, 0.22) }, main];
    });
    const odd = this.series.flatMap((series) => (this.off.has(series.name) ? [] : series.odd));
    if (odd.length) traces.push(this.oddMarks(odd));
    return traces;
  }

  oddMarks(steps) {
    return {
      x: steps,
      y: steps.map(() => 0.04),
      yaxis: "y2",
      type: "scatter",
      mode: "markers",
      marker: { symbol: "x-thin", size: 7, line: { width: 1.5, color: colour("--critical") } },
      hoverinfo: "skip",
    };
  }

  // A constant is drawn in the middle between itself doubled and zero; all else fits itself.
  height() {
    const ends = this.series.flatMap((series) => (this.off.has(series.name) ? [] : [...series.low, ...series.high]));
    const known = ends.filter((value) => value !== null);
    const low = known.reduce((least, value) => Math.min(least, value), Infinity);
    const high = known.reduce((most, value) => Math.max(most, value), -Infinity);
    if (low !== high || this.log) return {};
    const range = low === 0 ? [-0.1, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)];
    return { autorange: false, range };
  }

  marks() {
    const part = this.element.dataset.part;
    if (part === undefined) return [];
    const x = Number(part);
    const ink = colour("--critical");
    const isFirst = x <= this.firstStep;
    return [{
      type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 1.25, dash: "3px 3px" },
      label: {
        text: isFirst ? "they part from the first step on" : `they part at step ${whole(x)}`,
        textposition: "end", textangle: 0, xanchor: "left", yanchor: "bottom", font: { size: 11, color: ink },
      },
    }];
  }

  count() {
    const drawn = this.places;
    const total = this.series.reduce((sum, series) => sum + series.total, 0);
    const odd = this.series.reduce((sum, series) => sum + series.odd.length, 0);
    const parts = [`${whole(drawn)} of ${whole(total)} points shown`];
    if (drawn < total) parts.push("shaded: lowest to highest");
    if (odd) parts.push("× marks NaN or infinity");
    this.element.querySelector(".chart-count").textContent = parts.join(" · ");
    this.element.dataset.liveShown = drawn;
    this.element.dataset.liveTotal = total;
  }

  // For those who hear the page: the picture in words, which describes the figure.
  summarize() {
    const { part, unit } = this.element.dataset;
    const sentences = this.series.filter(({ total }) => total).map((series) => series.inWords(unit));
    if (part !== undefined) sentences.push(`The witnesses part at step ${whole(Number(part))}.`);
    this.element.querySelector(".chart-summary").textContent = sentences.join(" ");
  }

  // The legend doubles as the read-out: values at the step that is pointed at, else the last ones.
  readOut(step = null) {
    this.series.forEach((series, i) => {
      const at = step === null ? -1 : series.near(step);
      const value = at < 0 ? series.last : series.valueAt(at);
      this.legend.children[i].querySelector(".number").textContent = series.step.length ? figure(value) : "–";
    });
  }

  pointAt(step) {
    this.readOut(step);
    if (this.isDrawn) window.Plotly.Fx.hover(this.plot, { xval: step });
  }

  pointAway() {
    this.readOut();
    if (this.isDrawn) window.Plotly.Fx.unhover(this.plot);
  }

  zoomed(change) {
    const [low, high] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (low === undefined || high === undefined) return;
    this.shared.zoom([Math.max(0, Math.floor(low)), Math.max(1, Math.ceil(high))]);
  }

  // Half or twice as many steps around the middle of what is drawn.
  scale(factor) {
    if (!this.isDrawn) return;
    const [low, high] = this.plot._fullLayout.xaxis.range;
    const middle = (low + high) / 2;
    const half = Math.max(2, ((high - low) / 2) * factor);
    this.shared.zoom([Math.max(0, Math.floor(middle - half)), Math.ceil(middle + half)]);
  }

  makeLegend() {
    this.legend = this.element.querySelector(".legend");
    this.legend.replaceChildren(...this.names.map((name, i) => this.legendEntry(name, this.labels[i], this.words[i], this.styles[i])));
    const tools = this.element.querySelector(".chart-tools");
    const title = this.element.querySelector(".chart-title").textContent;
    tools.replaceChildren(
      tool("+", `Zoom into ${title}`, () => this.scale(0.5)),
      tool("−", `Zoom out of ${title}`, () => this.scale(2)),
      tool("log", `Logarithmic scale for ${title}`, (button) => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", this.log);
        if (this.isDrawn) this.draw();
      }, this.log),
    );
  }

  legendEntry(name, label, words, [variable, dash]) {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = words ? `${name}: ${words}` : name;
    const sample = sampleLine(variable, dash);
    const word = document.createElement("span");
    word.className = "legend-name";
    word.textContent = label;
    const value = document.createElement("span");
    value.className = "number";
    button.append(sample, word, value);
    button.addEventListener("click", () => this.toggle(name, button));
    entry.append(button);
    return entry;
  }

  toggle(name, button) {
    if (!this.off.delete(name)) this.off.add(name);
    button.setAttribute("aria-pressed", !this.off.has(name));
    if (this.isDrawn) this.draw();
  }

  fail(error) {
    this.element.dataset.liveState = "failed";
    this.element.querySelector(".chart-count").textContent = `Not up to date: ${error.message}`;
  }

  remove() {
    window.Plotly.purge(this.plot);
  }
}

function sampleLine(variable, dash) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 22 4");
  svg.setAttribute("class", "sample");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", "M0 2h22");
  line.setAttribute("stroke", `var(${variable})`);
  if (dash !== "solid") line.setAttribute("stroke-dasharray", dash.replaceAll("px", ""));
  svg.append(line);
  return svg;
}

// isPressed: whether it is on; not given for one that cannot be.
function tool(text, label, act, isPressed) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button is-quiet";
  button.textContent = text;
  button.setAttribute("aria-label", label);
  if (isPressed !== undefined) button.setAttribute("aria-pressed", isPressed);
  button.addEventListener("click", () => act(button));
  return button;
}
