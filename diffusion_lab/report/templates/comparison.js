"use strict";
// Curves of all runs in one chart, with one trace per group; a table that can be sorted and searched.
const { runs, metrics, costs, keys, hues } = lab.data;
const MOST_COLOURS = 7; // groups beyond these share a grey
const byId = (id) => document.getElementById(id);
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const groups = (key) => {
  const found = new Map();
  for (const run of runs) {
    const value = key ? run.settings[key] : "all runs";
    if (!found.has(value)) found.set(value, []);
    found.get(value).push(run);
  }
  const numeric = (text) => (text !== "" && Number.isFinite(Number(text)) ? Number(text) : null);
  return [...found].sort(([a], [b]) => numeric(a) !== null && numeric(b) !== null ? numeric(a) - numeric(b) : a < b ? -1 : 1);
};

const overlay = () => {
  const name = byId("metric").value, figure = lab.charts.get("overlay");
  const metric = metrics.find((m) => m.name === name);
  byId("legend").replaceChildren();
  figure.data = [];
  groups(byId("colour").value).forEach(([value, members], i) => {
    const colour = i < MOST_COLOURS ? hues[i] : "#5f6875";
    const lines = { x: [], y: [], text: [] }, stops = { x: [], y: [], text: [] };
    for (const run of members) {
      const values = run.values[name] || [];
      run.steps.forEach((step, j) => {
        lines.x.push(step);
        lines.y.push(values[j] ?? null);
        lines.text.push(plain(run.name));
        if (step === run.stop && (values[j] ?? null) !== null) { stops.x.push(step); stops.y.push(values[j]); stops.text.push(plain(run.name)); }
      });
      lines.x.push(null); lines.y.push(null); lines.text.push("");
    }
    const hovertemplate = "%{text}<br>step %{x}: <b>%{y:.3f}</b><extra></extra>";
    const opacity = runs.length > 40 ? 0.45 : 0.9;
    figure.data.push({ type: "scatter", mode: runs.length > 40 ? "lines" : "lines+markers", ...lines, opacity, hovertemplate, connectgaps: false,
      line: { color: colour, width: 1.8 }, marker: { color: colour, size: 5 } });
    figure.data.push({ type: "scatter", mode: "markers", ...stops, hovertemplate: `recommended stop<br>${hovertemplate}`,
      marker: { color: "rgba(0,0,0,0)", size: 13, line: { color: colour, width: 2 } } });
    legend(i, value, members.length, colour);
  });
  figure.layout.yaxis.title.text = metric ? plain(metric.unit || metric.name) : "";
  lab.drawAll();
};

const legend = (i, value, count, colour) => {
  if (!byId("colour").value || i > MOST_COLOURS) return;
  const item = document.createElement("li"), mark = document.createElement("i");
  mark.dataset.hue = colour;
  item.append(mark, i < MOST_COLOURS ? `${value} (${count})` : "others");
  byId("legend").append(item);
};

// Two figures against each other: the distortion-editability plane of the papers is its first view.
const plane = () => {
  const [across, up] = ["across", "up"].map((id) => [...metrics, ...costs].find((m) => m.name === byId(id).value));
  const figure = lab.charts.get("plane"), hovertemplate = "%{text}<br>%{x:.3f}, <b>%{y:.3f}</b><extra></extra>";
  figure.data = [];
  groups(byId("colour").value).forEach(([, members], i) => {
    const colour = i < MOST_COLOURS ? hues[i] : "#5f6875";
    const ways = { x: [], y: [] }, stops = { x: [], y: [], text: [] };
    for (const run of members) {
      run.steps.forEach((step, j) => {
        if (run.stop === null || step > run.stop || !run.values[across.name] || !run.values[up.name]) return;
        ways.x.push(run.values[across.name][j]);
        ways.y.push(run.values[up.name][j]);
      });
      ways.x.push(null); ways.y.push(null);
      stops.x.push(run.at_stop[across.name] ?? null); stops.y.push(run.at_stop[up.name] ?? null); stops.text.push(plain(run.name));
    }
    figure.data.push({ type: "scatter", mode: "lines", ...ways, opacity: 0.45, hoverinfo: "skip", connectgaps: false, line: { color: colour, width: 1.2 } });
    figure.data.push({ type: "scatter", mode: "markers", ...stops, hovertemplate, marker: { color: colour, size: 10 } });
  });
  const title = (m) => plain(costs.includes(m) ? `${m.label} (${m.unit})` : m.label);
  figure.layout.xaxis.title.text = title(across);
  figure.layout.yaxis.title.text = title(up);
  lab.drawAll();
};

const firstOf = (...names) => names.find((name) => metrics.some((m) => m.name === name)) ?? metrics[0]?.name;
if (metrics.length) {
  byId("across").value = firstOf("prompt_similarity", "clip_text", "diversity");
  byId("up").value = firstOf("image_similarity", "similarity_heldout", "similarity", "clip_image");
}
if (keys.length) byId("colour").value = keys.find((key) => key !== "seed") ?? keys[0];
for (const id of ["metric", "colour"]) byId(id).addEventListener("change", overlay);
for (const id of ["across", "up", "colour"]) byId(id).addEventListener("change", () => metrics.length && plane());
overlay();
if (metrics.length) plane();

// --- the table ------------------------------------------------------------------------------------------
const body = document.querySelector("#runs-table tbody"), rows = [...body.rows];
const heads = [...document.querySelectorAll("#runs-table thead th")];
const order = new Intl.Collator(undefined, { numeric: true });

const sortBy = (column) => {
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const numbers = rows.every((row) => key(row) === "" || Number.isFinite(Number(key(row))));
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last in both orders
    return (numbers ? Number(x) - Number(y) : order.compare(x, y)) * (up ? 1 : -1);
  });
  body.append(...rows);
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
};
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

const filter = () => {
  const wanted = byId("filter").value.trim().toLowerCase();
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  byId("shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
};
byId("filter").addEventListener("input", filter);
filter();
document.documentElement.dataset.ready = "yes";
