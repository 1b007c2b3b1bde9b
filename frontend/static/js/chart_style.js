// How charts look: a colour and a dash for each kind of witness, and the frame they share.
const STYLES = {
  reported: ["--reported", "solid"],
  declared: ["--reported", "solid"],
  metric_coverage: ["--reported", "solid"],
  unmasked: ["--true", "solid"],
  applied: ["--true", "solid"],
  input_coverage: ["--true", "solid"],
  all: ["--second", "6px 3px"],
  effective: ["--second", "6px 3px"],
  loss_coverage: ["--second", "6px 3px"],
  recomputed: ["--third", "2px 3px"],
  weighted: ["--fourth", "8px 3px 2px 3px"],
  batch: ["--sixth", "1px 2px"],
};
const OTHERS = [
  ["--true", "solid"],
  ["--second", "6px 3px"],
  ["--third", "2px 3px"],
  ["--fourth", "8px 3px 2px 3px"],
  ["--fifth", "10px 3px"],
  ["--sixth", "4px 2px"],
];

// Colour variable and dash for each signal of a chart; no two look alike while there are enough.
export function stylesFor(names) {
  const chosen = names.map((name) => STYLES[name.slice(name.lastIndexOf("/") + 1)]);
  const taken = new Set(chosen.filter(Boolean).map(String));
  const free = OTHERS.filter((style) => !taken.has(String(style)));
  let next = 0;
  return chosen.map((style) => style ?? (free.length ? free : OTHERS)[next++ % (free.length || OTHERS.length)]);
}

// What somebody set stays as it is until it is set again; everything else is joined by straight lines.
export function shapeOf(name) {
  return name.endsWith("/declared") ? "hv" : "linear";
}

// The colour behind a variable, in the theme that is on.
export function colour(variable) {
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  probe.style.color = `var(${variable})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

export function faded(rgb, alpha) {
  return rgb.replace(/^rgba?\(([^)]+?)(,[^,)]+)?\)$/, (_, channels) => `rgba(${channels.split(",").slice(0, 3)}, ${alpha})`);
}

export const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };

export function frame({ range, log, canDrag }) {
  const soft = colour("--text-soft");
  const line = colour("--line");
  const font = { family: getComputedStyle(document.body).fontFamily, size: 11, color: soft };
  const axis = { gridcolor: line, zeroline: false, ticks: "", tickfont: font, automargin: false };
  return {
    font,
    margin: { l: 46, r: 8, t: 6, b: 24 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "x",
    hoverdistance: -1,
    spikedistance: -1,
    dragmode: canDrag ? "zoom" : false,
    xaxis: {
      ...axis,
      showgrid: false,
      tickformat: ",d",
      nticks: 6,
      ...(range ? { range, autorange: false } : { autorange: true }),
      showspikes: true,
      spikemode: "across",
      spikesnap: "cursor",
      spikethickness: 1,
      spikedash: "solid",
      spikecolor: soft,
    },
    yaxis: {
      ...axis,
      fixedrange: true,
      nticks: 5,
      autorange: true,
      type: log ? "log" : "linear",
      exponentformat: "e", // raised digits would be made by inline styles, which our policy forbids
      separatethousands: true,
    },
    // A strip at the bottom, in which NaN and infinities are marked.
    yaxis2: { overlaying: "y", range: [0, 1], fixedrange: true, visible: false },
  };
}
