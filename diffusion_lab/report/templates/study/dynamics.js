"use strict";
// Every metric of every run against steps; a click on a point shows the images of that run and step.
const chosen = { run: null, step: 0 }; // a run, and the position of one of its evaluations
const MANY = 60; // runs; more are drawn without marks

const colourKey = () => study.keys.find((key) => key.name === byId("colour").value);

// One trace for each group, with gaps between the runs: hundreds of traces would be slow.
const lines = (metric, group, many) => {
  const trace = { type: "scatter", mode: many ? "lines" : "lines+markers", x: [], y: [], customdata: [], connectgaps: false, hovertemplate: "%{text}<extra></extra>", text: [],
    opacity: many ? 0.5 : 0.9, line: { color: group.style.colour, width: many ? 1.2 : 1.7, dash: group.style.dash }, marker: { color: group.style.colour, size: 6, symbol: group.style.symbol } };
  for (const run of group.runs) {
    run.steps.forEach((step, i) => {
      const value = run.values[metric.name]?.[i] ?? null;
      trace.x.push(step); trace.y.push(value); trace.customdata.push([run.index, i]);
      trace.text.push(value === null ? "" : `${plain(run.name)}<br>step ${step}: <b>${value.toFixed(3)}</b>`);
    });
    trace.x.push(null); trace.y.push(null); trace.customdata.push(null); trace.text.push("");
  }
  return trace;
};

// Of the chosen run, else the mean over the runs that are shown.
const references = (metric, runs) => {
  const found = {};
  for (const [i, name] of ["floor", "ceiling", "impostor"].entries()) {
    const values = (chosen.run ? [chosen.run] : runs).map((run) => run.references[metric.name]?.[i]).filter(known);
    if (values.length) found[name] = values.reduce((sum, v) => sum + v, 0) / values.length;
  }
  return found;
};

const DASH_OF = { floor: "dot", ceiling: "dash", impostor: "dashdot" };
const drawDynamics = () => {
  const runs = lab.shown(), key = colourKey(), many = runs.length > MANY, only = byId("metric").value;
  const groups = lab.groups(runs, (run) => run.keys[key.name], { inOrder: key.ordered });
  for (const group of groups) group.label = `${lab.label(key, group.name)} (${group.runs.length})`;
  lab.legend("legend-dynamics", groups, { single: true });
  for (const metric of study.metrics) {
    const id = `dynamics-${metric.name}`, card = byId(`card-${id}`);
    card.hidden = only !== "" && only !== metric.name;
    card.classList.toggle("wide", only === metric.name);
    if (card.hidden) continue;
    const lines_ = references(metric, runs);
    const figure = lab.figure("optimizer steps", metric.unit, { right: Object.keys(lines_).length ? 62 : 16 });
    for (const group of groups) figure.data.push(lines(metric, group, many));
    for (const [name, value] of Object.entries(lines_)) lab.rule_(figure, name, value, DASH_OF[name]);
    lab.spread(figure);
    if (chosen.run) mark(figure, metric);
    lab.put(id, figure, runs.flatMap((run) => run.steps.map((step, i) => ({ ...lab.told(run), step, metric: metric.name,
      value: run.values[metric.name]?.[i] ?? null, low: run.low[metric.name]?.[i] ?? null, high: run.high[metric.name]?.[i] ?? null }))));
  }
};

// The chosen run over the others, its recommended stop as a ring, and the step whose images are shown.
const mark = (figure, metric) => {
  const run = chosen.run, values = run.values[metric.name] ?? [], stop = lab.stop(run, -1), at = run.steps[chosen.step];
  figure.data.push({ type: "scatter", mode: "lines", x: run.steps, y: values, hoverinfo: "skip", line: { color: study.ink, width: 2.6 } });
  if (stop !== null && known(values[stop])) {
    figure.data.push({ type: "scatter", mode: "markers", x: [run.steps[stop]], y: [values[stop]], hoverinfo: "skip",
      marker: { color: "rgba(0,0,0,0)", size: 14, line: { color: study.ink, width: 2 } } });
  }
  figure.layout.shapes.push({ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: study.muted, width: 1.3, dash: "dot" } });
};

// Names of lines that would overlap are moved apart.
lab.spread = (figure) => {
  const names = figure.layout.annotations.filter((one) => one.xref === "paper").sort((a, b) => a.y - b.y);
  const all = figure.data.flatMap((trace) => trace.y).concat(names.map((one) => one.y)).filter(known);
  const gap = (Math.max(...all) - Math.min(...all)) * 0.085;
  for (let round = 0; round < 20; round += 1) {
    for (let i = 0; i + 1 < names.length; i += 1) {
      const lack = gap - (names[i + 1].y - names[i].y);
      if (lack > 1e-12) { names[i].y -= lack / 2; names[i + 1].y += lack / 2; }
    }
  }
};

// What a run is, for tables: its name and keys.
lab.told = (run) => ({ run: run.name, ...Object.fromEntries(study.keys.map((key) => [key.name, run.keys[key.name]])) });

const buildDynamics = () => {
  const place = byId("dynamics-cards");
  for (const metric of study.metrics) {
    lab.card(place, `dynamics-${metric.name}`, metric.label, metric.up ? "higher is better" : "lower is better");
  }
  for (const key of study.keys) byId("colour").append(new Option(key.label, key.name));
  byId("metric").append(new Option("all metrics", ""), ...study.metrics.map((m) => new Option(m.label, m.name)));
  byId("colour").value = study.colour;
  for (const id of ["colour", "metric"]) byId(id).addEventListener("change", drawDynamics);
  lab.section("dynamics", () => {
    drawDynamics();
    for (const metric of study.metrics) {
      const chart = byId(`chart-dynamics-${metric.name}`);
      if (chart.dataset.clicks || !chart.on) continue;
      chart.dataset.clicks = "yes";
      chart.on("plotly_click", (event) => {
        const at = event.points.map((point) => point.customdata).find((data) => data);
        if (at) lab.choose(study.runs[at[0]], at[1]);
      });
    }
  });
};
if (byId("dynamics")) buildDynamics();
