"use strict";
// Colours, dashes and marks of groups; legends; cards with a chart, its SVG and its table; redrawing.
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "triangle-down"];
const SVG = "http://www.w3.org/2000/svg";
const STROKES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" };

const ordered = (values) => {
  const numeric = values.every((value) => value !== "" && Number.isFinite(Number(value)));
  return [...new Set(values)].sort((a, b) => (numeric ? Number(a) - Number(b) : a < b ? -1 : 1));
};

// The style of the i-th of `count` groups. Ordered groups (numbers of photos) go from dark to light.
const styleOf = (i, count, inOrder) => {
  const colours = inOrder ? study.ordered : study.hues;
  const at = inOrder && count > 1 ? Math.round((i * (colours.length - 1)) / (count - 1)) : i % colours.length;
  return { colour: colours[Math.min(at, colours.length - 1)], dash: DASHES[i % DASHES.length], symbol: SYMBOLS[i % SYMBOLS.length] };
};

// Groups of runs by a text: [{ name, runs, style }], with the same style whatever is filtered.
lab.groups = (runs, of, { inOrder = false } = {}) => {
  const all = ordered(study.runs.map((run) => String(of(run))));
  return all.map((name, i) => ({ name, style: styleOf(i, all.length, inOrder), runs: runs.filter((run) => String(of(run)) === name) }))
    .filter((group) => group.runs.length);
};

const shape = (symbol) => {
  const mark = document.createElementNS(SVG, symbol === "circle" ? "circle" : "path");
  const paths = { square: "M9.5 2.5h7v7h-7z", diamond: "M13 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z", "triangle-up": "M13 1.5l4.5 8h-9z", "triangle-down": "M13 10.5l4.5-8h-9z",
    x: "M9 3.5l1.5-1.5l2.5 2.5l2.5-2.5l1.5 1.5l-2.5 2.5l2.5 2.5l-1.5 1.5l-2.5-2.5l-2.5 2.5l-1.5-1.5l2.5-2.5z", star: "M13 0.5l1.6 3.8l4 .3l-3 2.7l.9 4l-3.5-2.1l-3.5 2.1l.9-4l-3-2.7l4-.3z",
    pentagon: "M13 1l5 3.8l-1.9 5.7h-6.2l-1.9-5.7z" };
  const place = symbol === "circle" ? { cx: 13, cy: 6, r: 3.8 } : { d: paths[symbol] };
  for (const [key, value] of Object.entries(place)) mark.setAttribute(key, value);
  return mark;
};

const sample = (style) => {
  const image = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "path"), mark = shape(style.symbol);
  const colour = lab.coloured(style.colour);
  for (const [key, value] of Object.entries({ width: 26, height: 12, "aria-hidden": "true" })) image.setAttribute(key, value);
  for (const [key, value] of Object.entries({ d: "M0 6h26", stroke: colour, "stroke-width": 2, "stroke-dasharray": STROKES[style.dash] })) line.setAttribute(key, value);
  mark.setAttribute("fill", colour);
  image.append(line, mark);
  return image;
};

lab.legend = (id, groups, { single = false } = {}) => {
  const place = byId(id);
  place.replaceChildren();
  if (groups.length < 2 && !single) return;
  for (const group of groups) {
    const item = document.createElement("li");
    item.append(sample(group.style), group.label ?? group.name);
    place.append(item);
  }
};

// --- figures --------------------------------------------------------------------------------------------
lab.figure = (x, y, { right = 16 } = {}) => {
  const figure = structuredClone(study.base);
  figure.data = [];
  figure.layout.xaxis.title.text = plain(x);
  figure.layout.yaxis.title.text = plain(y);
  figure.layout.margin.r = right;
  figure.layout.shapes = [];
  figure.layout.annotations = [];
  return figure;
};

// A line with marks through points { x, value, low, high, note }, as a band or with error bars.
lab.series = (figure, style, points, { band = false, lines = true, name = "", digits = 3, offset = 0 } = {}) => {
  const good = points.filter((point) => known(point.value)), limited = good.filter((point) => known(point.low));
  if (band && limited.length) {
    const back = [...limited].reverse();
    figure.data.push({ type: "scatter", mode: "lines", fill: "toself", fillcolor: style.colour, opacity: 0.14, line: { width: 0 }, hoverinfo: "skip",
      x: [...limited, ...back].map((p) => p.x), y: [...limited.map((p) => p.high), ...back.map((p) => p.low)] });
  }
  const text = good.map((p) => `${plain(name)}${name ? "<br>" : ""}<b>${p.value.toFixed(digits)}</b>${known(p.low) ? ` (${p.low.toFixed(digits)} to ${p.high.toFixed(digits)})` : ""}${p.note ? `<br>${plain(p.note)}` : ""}`);
  figure.data.push({ type: "scatter", mode: lines ? "lines+markers" : "markers", x: good.map((p) => p.x + offset), y: good.map((p) => p.value), text,
    hovertemplate: "%{text}<extra></extra>", line: { color: style.colour, width: 2, dash: style.dash }, marker: { color: style.colour, size: 8, symbol: style.symbol },
    error_y: band || !limited.length ? undefined : { type: "data", symmetric: false, thickness: 1.4, width: 4, color: style.colour,
      array: good.map((p) => (known(p.high) ? p.high - p.value : 0)), arrayminus: good.map((p) => (known(p.low) ? p.value - p.low : 0)) } });
};

// A horizontal or vertical line with its name at the edge.
lab.rule_ = (figure, name, value, dash, across = true) => {
  const line = { color: study.muted, width: 1.3, dash };
  figure.layout.shapes.push(across ? { type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below", line }
    : { type: "line", yref: "paper", y0: 0, y1: 1, x0: value, x1: value, layer: "below", line });
  figure.layout.annotations.push({ showarrow: false, text: plain(name), font: { size: 11, color: study.muted },
    ...(across ? { xref: "paper", x: 1, xanchor: "left", xshift: 4, y: value } : { yref: "paper", y: 1, yanchor: "bottom", x: value }) });
};

// --- cards: title, chart, its table -----------------------------------------------------------------------
const tables = new Map(); // by chart -> rows, objects with the same keys
const save = (name, text, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
const cell = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
lab.csv = (rows) => (rows.length ? [Object.keys(rows[0]), ...rows.map((row) => Object.values(row))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n" : "");
lab.tables = tables;

lab.card = (place, id, title, small = "", size = "") => {
  const card = document.createElement("article"), head = document.createElement("h3"), note = document.createElement("small"), tools = document.createElement("span"), chart = document.createElement("div");
  card.className = "card";
  card.id = `card-${id}`;
  tools.className = "take";
  for (const [kind, act] of Object.entries({
    SVG: async () => save(`${study.name}-${id}.svg`, await Plotly.toImage(chart, { format: "svg", imageDataOnly: true, width: 900, height: 520 }), "image/svg+xml"),
    CSV: () => save(`${study.name}-${id}.csv`, lab.csv(tables.get(id) ?? []), "text/csv"),
  })) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: kind, title: kind === "SVG" ? "Save this chart as SVG" : "Save the table behind this chart as CSV" });
    button.setAttribute("aria-label", `${title}: save as ${kind}`);
    button.addEventListener("click", act);
    tools.append(button);
  }
  note.textContent = small;
  head.append(tools, title, " ", note);
  chart.className = `chart ${size}`;
  chart.id = `chart-${id}`;
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `${title}${small ? `, ${small}` : ""}`);
  card.append(head, chart);
  place.append(card);
  return chart;
};

lab.put = (id, figure, rows) => {
  lab.charts.set(id, figure);
  tables.set(id, rows);
  const chart = byId(`chart-${id}`);
  chart.parentElement.classList.toggle("empty", !figure.data.length);
  lab.draw(id);
};

// --- sections are drawn when they come into view, and again after a change ----------------------------------
const sections = new Map(); // by id -> { draw, stale, seen }
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const section = sections.get(entry.target.id);
    section.seen = entry.isIntersecting;
    refresh(section);
  }
}, { rootMargin: "200px" });
const refresh = (section) => {
  if (!section.stale || !section.seen) return;
  section.stale = false;
  section.draw();
};
lab.section = (id, draw) => {
  const place = byId(id);
  if (!place) return;
  sections.set(id, { draw, stale: true, seen: false });
  watcher.observe(place);
};
lab.changed = () => { for (const section of sections.values()) { section.stale = true; refresh(section); } };
lab.drawEverything = () => { for (const section of sections.values()) { section.stale = false; section.draw(); } };
darkScheme.addEventListener("change", lab.changed); // legends
