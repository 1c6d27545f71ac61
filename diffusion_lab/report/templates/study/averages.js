"use strict";
// Averages over subjects: curves by group, values at the recommended stop, and the sections made of them.
const ENOUGH = 0.75; // of a group's runs must have an evaluation for its mean to be drawn

const keyOf = (name) => study.keys.find((key) => key.name === name);
const groupBy = (runs, name) => {
  const key = name ? keyOf(name) : null;
  return lab.groups(runs, (run) => (key ? run.keys[name] : "all runs"), { inOrder: Boolean(key?.ordered) })
    .map((group) => ({ ...group, label: lab.label(key, group.name) }));
};
lab.label = (key, value) => (!key ? value : value === "" ? `no ${key.label}` : key.name === "n" ? `${value} photos` : key.ordered || key.extra ? `${key.label} ${value}` : value);
const limits = (one) => ({ value: one?.value ?? null, low: one?.low ?? null, high: one?.high ?? null });
const counted = (one) => (one ? `${one.subjects} subject${one.subjects === 1 ? "" : "s"}, ${one.runs} run${one.runs === 1 ? "" : "s"}` : "");

// Mean of a metric at each step that enough of the runs have: [{ x, value, low, high, note, subjects, runs }].
lab.curve = (runs, metric) => {
  const counts = new Map();
  const measured = runs.filter((run) => (run.values[metric] ?? []).some(known));
  for (const run of measured) for (const step of run.steps) counts.set(step, (counts.get(step) ?? 0) + 1);
  return [...counts].filter(([, count]) => count >= ENOUGH * measured.length).map(([step]) => step).sort((a, b) => a - b).map((step) => {
    const one = lab.mean(measured, (run, replicate) => { const at = run.steps.indexOf(step); return at < 0 ? null : lab.value(run, metric, at, replicate); });
    return { x: step, ...limits(one), note: `step ${step}; ${counted(one)}`, subjects: one?.subjects ?? 0, runs: one?.runs ?? 0 };
  }).filter((point) => known(point.value));
};

// Settings whose different values are averaged over here, told to the reader.
lab.mixed = (id, runs, ...apart) => {
  if (apart.includes("settings")) apart.push(...study.keys.filter((key) => key.setting).map((key) => key.name));
  const names = study.keys.filter((key) => key.setting && !apart.includes(key.name) && new Set(runs.map((run) => run.keys[key.name])).size > 1);
  const place = byId(id);
  place.hidden = !names.length;
  place.textContent = names.length ? `These means are over different values of ${names.map((key) => key.label).join(", ")}. Choose one in the filters above, or draw lines by it.` : "";
};

const curves = (prefix, groups, by) => {
  for (const metric of study.metrics) {
    const figure = lab.figure("optimizer steps", metric.unit), rows = [];
    for (const group of groups) {
      const points = lab.curve(group.runs, metric.name);
      lab.series(figure, group.style, points, { band: true, name: group.label });
      rows.push(...points.map((p) => ({ [by]: group.name, metric: metric.name, step: p.x, value: p.value, low: p.low, high: p.high, subjects: p.subjects, runs: p.runs })));
    }
    lab.put(`${prefix}-${metric.name}`, figure, rows);
  }
};
const metricCards = (place, prefix, small = (m) => (m.up ? "higher is better" : "lower is better")) => {
  for (const metric of study.metrics) lab.card(byId(place), `${prefix}-${metric.name}`, metric.label, small(metric));
};

// A choice of what the lines are; `wanted` is chosen first.
const choice = (id, wanted, ...more) => {
  const select = byId(id);
  select.append(new Option("nothing", ""), ...study.keys.filter((key) => key.setting || ["gender", "settings"].includes(key.name) || more.includes(key.name))
    .filter((key) => new Set(study.runs.map((run) => String(run.keys[key.name]))).size > 1).map((key) => new Option(key.label, key.name)));
  if ([...select.options].some((option) => option.value === wanted)) select.value = wanted;
  select.parentElement.hidden = select.options.length < 2;
};
const several = (name) => new Set(study.runs.map((run) => String(run.keys[name]))).size > 1;

// --- counts: a line for each number of photos --------------------------------------------------------
const arm = () => { const select = byId("counts-arm"); return select ? select.value : ""; };
const drawCounts = () => {
  const runs = lab.averaged().filter((run) => arm() === "" || String(run.keys[study.split]) === arm());
  const groups = groupBy(runs, "n");
  lab.legend("legend-counts", groups, { single: true });
  lab.mixed("mixed-counts", runs, "n");
  curves("counts", groups, "n");
};
const buildCounts = () => {
  metricCards("counts-cards", "counts");
  const sizes = new Map();
  for (const run of study.runs) if (study.split) sizes.set(String(run.keys[study.split]), (sizes.get(String(run.keys[study.split])) ?? 0) + 1);
  byId("counts-arm").append(new Option("all together", ""), ...ordered([...sizes.keys()]).map((name) => new Option(lab.label(keyOf(study.split), name), name)));
  if (sizes.size > 1) byId("counts-arm").value = ordered([...sizes.keys()]).reduce((best, name) => (sizes.get(name) > sizes.get(best) ? name : best));
  byId("counts-arm").parentElement.hidden = sizes.size < 2;
  byId("counts-arm").addEventListener("change", drawCounts);
  lab.section("counts", drawCounts);
};

// --- optimum: metrics at the recommended stop against the number of photos --------------------------------
// Points of groups at the same x are drawn beside each other.
const beside = (i, count, width) => (count > 1 ? (i - (count - 1) / 2) * width : 0);
const byNumber = (runs) => lab.groups(runs.filter((run) => known(run.n)), (run) => run.n, { inOrder: true });
const drawOptimum = () => {
  const runs = lab.averaged(), by = byId("optimum-by").value, groups = groupBy(runs, by);
  lab.legend("legend-optimum", groups);
  lab.mixed("mixed-optimum", runs, "n", by);
  for (const metric of study.metrics) {
    const figure = lab.figure("training photos", metric.unit), rows = [];
    groups.forEach((group, i) => {
      const points = byNumber(group.runs).map((of) => {
        const one = lab.mean(of.runs, lab.atStop(metric.name)), n = Number(of.name);
        rows.push({ by: group.name, n, metric: metric.name, ...limits(one), subjects: one?.subjects ?? 0, runs: one?.runs ?? 0 });
        return { x: n, ...limits(one), note: `${n} photos; ${counted(one)}` };
      });
      lab.series(figure, group.style, points, { name: by ? group.label : "", offset: beside(i, groups.length, 0.25) });
    });
    lab.put(`optimum-${metric.name}`, figure, rows.filter((row) => row.value !== null));
  }
};
const buildOptimum = () => {
  metricCards("optimum-cards", "optimum");
  choice("optimum-by", study.split);
  byId("optimum-by").addEventListener("change", drawOptimum);
  lab.section("optimum", drawOptimum);
};
if (byId("counts")) buildCounts();
if (byId("optimum")) buildOptimum();
