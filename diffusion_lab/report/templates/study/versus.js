"use strict";
// Settings against each other: base models, methods in the plane of the papers with their costs, and other values.

// Groups below each other on one axis, with their names at its left.
const sideBySide = (id, groups, unit, of, { digits = 3, zero = false } = {}) => {
  const figure = lab.figure(unit, ""), rows = [];
  groups.forEach((group, i) => {
    const one = of(group);
    if (one === null || !known(one.value)) return;
    const bar = known(one.low) ? { type: "data", symmetric: false, array: [one.high - one.value], arrayminus: [one.value - one.low], color: group.style.colour, thickness: 1.4, width: 4 } : undefined;
    rows.push({ by: group.name, ...limits(one), subjects: one.subjects, runs: one.runs });
    figure.data.push({ type: "scatter", mode: "markers", x: [one.value], y: [i], error_x: bar, marker: { color: group.style.colour, size: 9, symbol: group.style.symbol },
      hovertemplate: `${plain(group.label)}<br><b>${one.value.toFixed(digits)}</b>${bar ? ` (${one.low.toFixed(digits)} to ${one.high.toFixed(digits)})` : ""}<br>${counted(one)}<extra></extra>` });
  });
  Object.assign(figure.layout.yaxis, { tickvals: groups.map((_, i) => i), ticktext: groups.map((group) => plain(short(group.label))), range: [groups.length - 0.5, -0.5], showgrid: false });
  Object.assign(figure.layout.xaxis, { showgrid: true, ...(zero ? { rangemode: "tozero" } : {}), nticks: 5 });
  lab.put(id, figure, rows);
};
const short = (text) => (text.length > 24 ? `${text.slice(0, 23)}\u2026` : text);

// A choice of one number of photos, so that runs of different lengths are not averaged.
const numberChoice = (id, draw) => {
  const counts = new Map();
  for (const run of study.runs) if (known(run.n)) counts.set(run.n, (counts.get(run.n) ?? 0) + 1);
  byId(id).append(new Option("all", ""), ...[...counts.keys()].sort((a, b) => a - b).map((n) => new Option(n, n)));
  if (counts.size > 1) byId(id).value = [...counts].sort((a, b) => b[1] - a[1] || b[0] - a[0])[0][0];
  byId(id).parentElement.hidden = counts.size < 2;
  byId(id).addEventListener("change", draw);
};
const ofNumber = (id) => lab.averaged().filter((run) => byId(id).value === "" || run.n === Number(byId(id).value));

const drawModels = () => {
  const runs = ofNumber("models-n"), groups = groupBy(runs, "model");
  lab.legend("legend-models", groups, { single: true });
  lab.mixed("mixed-models", runs, "model");
  curves("models", groups, "model");
  sideBySide("models-stop", groups, "steps", (group) => lab.mean(group.runs, lab.stopStep), { digits: 0 });
  for (const metric of study.metrics.filter((m) => m.weight > 0)) sideBySide(`models-at-${metric.name}`, groups, metric.unit, (group) => lab.mean(group.runs, lab.atStop(metric.name)));
};
const buildModels = () => {
  metricCards("models-cards", "models");
  lab.card(byId("models-stops"), "models-stop", "Recommended stop", "mean over subjects");
  for (const metric of study.metrics.filter((m) => m.weight > 0)) lab.card(byId("models-stops"), `models-at-${metric.name}`, metric.label, "at the recommended stop");
  numberChoice("models-n", drawModels);
  lab.section("models", drawModels);
};

// --- methods: the plane of image similarity and prompt similarity (distortion against editability) ---------------
const baselines = (metric, runs, kind) => {
  const values = runs.map((run) => run.references[metric.name]?.[kind]).filter(known);
  return values.length ? values.reduce((sum, v) => sum + v, 0) / values.length : null;
};
const drawMethods = () => {
  const runs = ofNumber("methods-n"), groups = groupBy(runs, study.split || "method");
  const [across, up] = ["methods-across", "methods-up"].map((id) => metricOf.get(byId(id).value));
  const figure = lab.figure(across.label, up.label, { right: 70 }), rows = [];
  lab.legend("legend-methods", groups, { single: true });
  lab.mixed("mixed-methods", runs, study.split || "method");
  for (const group of groups) {
    const path = lab.curve(group.runs, across.name).map((point) => ({ point, other: lab.curve(group.runs, up.name).find((one) => one.x === point.x) })).filter((one) => one.other);
    figure.data.push({ type: "scatter", mode: "lines+markers", x: path.map((one) => one.point.value), y: path.map((one) => one.other.value), opacity: 0.55,
      text: path.map((one) => `${plain(group.label)}<br>step ${one.point.x}`), hovertemplate: "%{text}<br>%{x:.3f}, <b>%{y:.3f}</b><extra></extra>",
      line: { color: group.style.colour, width: 1.5, dash: group.style.dash }, marker: { color: group.style.colour, size: 4 } });
    rows.push(...path.map((one) => ({ by: group.name, at: one.point.x, x: one.point.value, x_low: one.point.low, x_high: one.point.high, y: one.other.value, y_low: one.other.low, y_high: one.other.high })));
    const [x, y] = [across, up].map((metric) => lab.mean(group.runs, lab.atStop(metric.name)));
    if (!x || !y) continue;
    const bar = (one) => (known(one.low) ? { type: "data", symmetric: false, array: [one.high - one.value], arrayminus: [one.value - one.low], color: group.style.colour, thickness: 1.4, width: 4 } : undefined);
    figure.data.push({ type: "scatter", mode: "markers", x: [x.value], y: [y.value], error_x: bar(x), error_y: bar(y), marker: { color: group.style.colour, size: 12, symbol: group.style.symbol },
      hovertemplate: `${plain(group.label)}, recommended stop<br>%{x:.3f}, <b>%{y:.3f}</b><br>${counted(x)}<extra></extra>` });
    rows.push({ by: group.name, at: "stop", x: x.value, x_low: x.low, x_high: x.high, y: y.value, y_low: y.low, y_high: y.high });
  }
  for (const [metric, sideways] of [[across, false], [up, true]]) {
    for (const [kind, name, dash] of [[0, "floor", "dot"], [1, "ceiling", "dash"]]) {
      const value = baselines(metric, runs, kind);
      if (value !== null) lab.rule_(figure, name, value, dash, sideways);
    }
  }
  lab.put("methods", figure, rows);
  for (const cost of study.costs) {
    sideBySide(`cost-${cost.name}`, groups, cost.unit, (group) => lab.mean(group.runs, (run) => run.costs[cost.name] ?? null), { digits: 1, zero: true });
  }
};
const buildMethods = () => {
  lab.card(byId("methods-card"), "methods", "Likeness against editability", "thin: over the steps; large: at the recommended stop", "high");
  for (const cost of study.costs) lab.card(byId("methods-costs"), `cost-${cost.name}`, cost.label, `mean over subjects, ${cost.unit}`);
  const [up, across] = study.plane.length ? study.plane : [study.metrics[0].name, study.metrics.at(-1).name];
  for (const [id, name] of [["methods-across", across], ["methods-up", up]]) {
    byId(id).append(...study.metrics.map((m) => new Option(m.label, m.name)));
    byId(id).value = name;
    byId(id).addEventListener("change", drawMethods);
  }
  numberChoice("methods-n", drawMethods);
  lab.section("methods", drawMethods);
};

// --- any other setting: its values against the stop and the metrics there ------------------------------------------
const drawValues = () => {
  const name = byId("values-key").value, by = byId("values-by").value === name ? "" : byId("values-by").value;
  const runs = ofNumber("values-n"), groups = groupBy(runs, by), values = ordered(study.runs.map((run) => String(run.keys[name])).filter((v) => v !== ""));
  const numbers = values.map(Number), numeric = numbers.every(Number.isFinite), logarithmic = numeric && numbers.every((v) => v > 0) && Math.max(...numbers) / Math.min(...numbers) >= 8;
  const at = (value, i) => (logarithmic ? Math.log10(Number(value)) : numeric ? Number(value) : i);
  lab.legend("legend-values", groups);
  lab.mixed("mixed-values", runs, name, by);
  for (const { id, unit, of, digits } of [{ id: "values-stop", unit: "steps", of: lab.stopStep, digits: 0 }, ...study.metrics.map((m) => ({ id: `values-${m.name}`, unit: m.unit, of: lab.atStop(m.name), digits: 3 }))]) {
    const figure = lab.figure(keyOf(name).label, unit), rows = [];
    groups.forEach((group) => {
      const points = values.map((value, i) => {
        const one = lab.mean(group.runs.filter((run) => String(run.keys[name]) === value), of);
        if (one) rows.push({ by: group.name, [name]: value, ...limits(one), subjects: one.subjects, runs: one.runs });
        return { x: at(value, i), ...limits(one), note: `${keyOf(name).label} ${value}; ${counted(one)}` };
      });
      lab.series(figure, group.style, points, { name: by ? group.label : "", digits });
    });
    Object.assign(figure.layout.xaxis, { tickvals: values.map(at), ticktext: values.map((v) => plain(short(v))) });
    lab.put(id, figure, rows);
  }
};
const buildValues = () => {
  const keys = study.keys.filter((key) => key.setting && key.extra && several(key.name));
  byId("values-key").append(...keys.map((key) => new Option(key.label, key.name)));
  lab.card(byId("values-cards"), "values-stop", "Recommended stop", "steps");
  metricCards("values-cards", "values", () => "at the recommended stop");
  choice("values-by", several("method") ? "method" : several("model") ? "model" : "");
  for (const id of ["values-key", "values-by"]) byId(id).addEventListener("change", drawValues);
  numberChoice("values-n", drawValues);
  lab.section("values", drawValues);
};
if (byId("models")) buildModels();
if (byId("methods")) buildMethods();
if (byId("values")) buildValues();
