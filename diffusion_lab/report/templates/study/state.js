"use strict";
// The runs, what the reader has chosen, and the recommended stop of every run under the reader's weights.
const study = lab.data;
const TIE = 1e-9; // as in diffusion_lab/analysis/scoring.py
const byId = (id) => document.getElementById(id);
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const metricOf = new Map(study.metrics.map((metric) => [metric.name, metric]));
const replicates = study.replicates.count;

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

for (const [index, run] of study.runs.entries()) {
  const deltas = new Int8Array(bytes(run.deltas).buffer);
  const length = replicates * run.steps.length;
  run.index = index;
  run.noise = new Map(run.scales.map(([name, scale], i) => [name, { scale, at: deltas.subarray(i * length, (i + 1) * length) }]));
}

lab.weights = Object.fromEntries(study.metrics.map((m) => [m.name, m.weight]));
lab.ranges = Object.fromEntries(study.metrics.map((m) => [m.name, [...m.range]]));
lab.hidden = Object.fromEntries(study.keys.map((key) => [key.name, new Set(key.hidden)])); // values that are filtered out

// A metric of a run at a step, by position. Replicate -1 is the estimate, others have other prompts drawn.
lab.value = (run, name, step, replicate) => {
  const value = run.values[name]?.[step] ?? null;
  const noise = replicate < 0 ? undefined : run.noise.get(name);
  return value === null || noise === undefined ? value : value + noise.scale * noise.at[replicate * run.steps.length + step];
};

// The metrics that choose the step of a run: a metric without any value is left out, and the similarity of
// whole images takes the place of a similarity of faces that has no value (analysis/stop.py).
lab.choosing = (run) => {
  const has = (name) => (run.values[name] ?? []).some(known);
  const weights = new Map(study.metrics.filter((m) => lab.weights[m.name] > 0).map((m) => [m.name, lab.weights[m.name]]));
  if (weights.has("similarity") && !has("similarity") && has("clip_image")) {
    weights.set("clip_image", (weights.get("clip_image") ?? 0) + weights.get("similarity"));
  }
  for (const name of [...weights.keys()]) if (!has(name)) weights.delete(name);
  const total = [...weights.values()].reduce((sum, w) => sum + w, 0);
  return [...weights].map(([name, weight]) => {
    const [low, high] = lab.ranges[name], up = metricOf.get(name).up;
    return { name, from: up ? low : high, by: (weight / total) / (up ? high - low : low - high) };
  });
};

// Position of the evaluation with the greatest weighted sum of scaled metrics, the earliest of equal ones, or null.
lab.rule = (run, parts, replicate) => {
  let best = null, top = -Infinity;
  const scores = run.steps.map((_, step) => {
    let score = parts.length ? 0 : null;
    for (const part of parts) {
      const value = lab.value(run, part.name, step, replicate);
      score = score === null || value === null ? null : score + part.by * (value - part.from);
    }
    if (score !== null && score > top) top = score;
    return score;
  });
  scores.some((score, step) => score !== null && score >= top - TIE && ((best = step), true));
  return best;
};

// Recommended positions of every run, for the estimate (entry 0) and every replicate; made again after a change.
lab.settle = () => {
  for (const run of study.runs) {
    const parts = lab.choosing(run);
    run.stops = Array.from({ length: replicates + 1 }, (_, i) => lab.rule(run, parts, i - 1));
  }
};
lab.stop = (run, replicate) => run.stops[replicate + 1];

const passes = (run, keys) => keys.every((key) => !lab.hidden[key.name].has(String(run.keys[key.name])));
lab.shown = () => study.runs.filter((run) => passes(run, study.keys.filter((key) => !key.averages)));
// Averages are over a balanced part of a study that is still running (studies/measures.py), unless the reader wants all.
lab.averaged = () => study.runs.filter((run) => passes(run, study.keys));
lab.settle();
