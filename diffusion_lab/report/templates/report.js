"use strict";
// The stop rule of diffusion_lab/analysis/stop.py again, for weights set by the reader.
const { steps, metrics } = lab.data;
const TIE = 1e-9;

// weights: by metric -> { best: position or null, scores, lows, highs, halves }, along the steps; null: unknown.
lab.rule = (weights) => {
  const total = metrics.reduce((sum, m) => sum + (weights[m.name] || 0), 0);
  const used = total > 0 ? metrics.filter((m) => weights[m.name] > 0) : [];
  const scores = steps.map((_, i) => used.some((m) => m.scaled[i] === null) || !used.length ? null
    : used.reduce((sum, m) => sum + (weights[m.name] / total) * m.scaled[i], 0));
  const reach = (side) => steps.map((_, i) => scores[i] === null || used.some((m) => m[side][i] === null) ? null
    : Math.sqrt(used.reduce((sum, m) => sum + ((weights[m.name] / total) * m[side][i]) ** 2, 0)));
  const below = reach("below"), above = reach("above");
  const lows = below.map((b, i) => (b === null ? null : scores[i] - b));
  const highs = above.map((a, i) => (a === null ? null : scores[i] + a));
  const halves = below.map((b, i) => (b === null ? null : (b + above[i]) / 2));
  const known = scores.filter((s) => s !== null);
  const best = known.length ? scores.findIndex((s) => s !== null && s >= Math.max(...known) - TIE) : null;
  return { best, scores, lows, highs, halves };
};

const start = Object.fromEntries(metrics.map((m) => [m.name, m.weight]));
const weights = { ...start };
const top_ = Math.max(...metrics.map((m) => m.weight), 0) || 1;
const sliders = new Map();
const byId = (id) => document.getElementById(id);

const show = () => {
  const { best, scores, lows, highs } = lab.rule(weights);
  const stop = best === null ? null : steps[best];
  const total = metrics.reduce((sum, m) => sum + weights[m.name], 0);
  for (const m of metrics) {
    const share = total ? Math.round((100 * weights[m.name]) / total) : 0;
    const { input, output } = sliders.get(m.name);
    output.textContent = `${share} %`;
    input.setAttribute("aria-valuetext", `${share} percent of the decision`);
  }
  live(best, scores, lows, highs);
  for (const [id, figure] of lab.charts) {
    if (!id.startsWith("metric-") && id !== "score") continue;
    const line = figure.layout.shapes[0];
    line.visible = stop !== null;
    if (stop !== null) line.x0 = line.x1 = stop;
    if (id === "score") curve(figure, scores, lows, highs);
    lab.draw(id);
  }
  for (const row of document.querySelectorAll("#score-table tr[data-step]")) row.classList.toggle("stop", Number(row.dataset.step) === stop);
  for (const place of document.querySelectorAll("[data-readout]")) {
    const m = metrics.find((other) => other.name === place.dataset.readout);
    if (!m) continue;
    const value = document.createElement("b");
    value.textContent = best === null ? "" : m.text[best];
    place.replaceChildren(value, best === null ? "" : ` at step ${stop}${best > 0 ? `; ${m.text[0].split(" (")[0]} at step ${steps[0]}` : ""}`);
  }
  document.documentElement.dataset.stop = stop ?? "";
};

const live = (best, scores, lows, highs) => {
  const small = document.createElement("small");
  const recommended = lab.data.recommended;
  if (best === null) {
    byId("live").replaceChildren("All weights are 0, so nothing chooses the step.", small);
  } else {
    const limits = lows[best] === null ? "" : ` (${lows[best].toFixed(2)} to ${highs[best].toFixed(2)})`;
    byId("live").replaceChildren(`Stop at step ${steps[best]}, weighted score ${scores[best].toFixed(2)}${limits}`, small);
  }
  const unmoved = metrics.every((m) => weights[m.name] === start[m.name]);
  small.textContent = unmoved ? "with the run's own weights"
    : `with your weights; with the run's own: step ${recommended}`;
  byId("reset").disabled = unmoved;
};

const curve = (figure, scores, lows, highs) => {
  const known = steps.map((step, i) => [step, scores[i]]).filter((k) => k[1] !== null);
  const banded = steps.map((step, i) => [step, lows[i], highs[i]]).filter((k) => k[1] !== null);
  const back = [...banded].reverse();
  figure.data[0].x = [...banded, ...back].map((k) => k[0]);
  figure.data[0].y = [...banded.map((k) => k[2]), ...back.map((k) => k[1])];
  figure.data[1].x = known.map((k) => k[0]);
  figure.data[1].y = known.map((k) => k[1]);
};

if (metrics.length) {
  const place = byId("weights");
  for (const m of metrics) {
    const row = document.createElement("div"), name = document.createElement("label");
    const output = document.createElement("output"), input = document.createElement("input");
    row.className = "weight";
    Object.assign(input, { type: "range", min: 0, max: 10, step: 0.1, id: `weight-${m.name}`, value: (5 * m.weight) / top_ });
    name.htmlFor = output.htmlFor = input.id;
    const mark = document.createElement("i");
    mark.dataset.hue = m.hue;
    name.append(mark, m.spoken);
    input.addEventListener("input", () => { weights[m.name] = (Number(input.value) * top_) / 5; show(); });
    row.append(name, output, input);
    place.append(row);
    sliders.set(m.name, { input, output });
  }
  const reset = document.createElement("button");
  Object.assign(reset, { type: "button", id: "reset", textContent: "Reset the weights" });
  reset.addEventListener("click", () => {
    Object.assign(weights, start);
    for (const m of metrics) sliders.get(m.name).input.value = (5 * m.weight) / top_;
    show();
  });
  place.append(reset);

  show();
}

// --- the images by step ---------------------------------------------------------------------------------
const pictured = lab.data.pictures;
const view = (position) => {
  const at = Math.min(Math.max(position, 0), pictured.length - 1), step = pictured[at];
  const slider = byId("step");
  slider.value = at;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  byId("step-name").textContent = byId("step-caption").textContent = step;
  byId("previous").disabled = at === 0;
  byId("next").disabled = at === pictured.length - 1;
  for (const image of document.querySelectorAll("[data-picture]")) image.hidden = Number(image.dataset.picture) !== at;
  for (const [id, figure] of lab.charts) {
    if (!id.startsWith("metric-")) continue;
    Object.assign(figure.layout.shapes[1], { x0: step, x1: step, visible: true });
    lab.draw(id);
  }
};
const nearest = (step) => pictured.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(pictured[best] - step) ? i : best), 0);

if (pictured.length) {
  const slider = byId("step"), stopNow = () => Number(document.documentElement.dataset.stop || pictured.at(-1));
  slider.addEventListener("input", () => view(Number(slider.value)));
  byId("previous").addEventListener("click", () => view(Number(slider.value) - 1));
  byId("next").addEventListener("click", () => view(Number(slider.value) + 1));
  byId("to-stop").addEventListener("click", () => view(nearest(stopNow())));
  byId("to-stop").hidden = !metrics.length;
  for (const id of lab.charts.keys()) {
    if (id.startsWith("metric-")) byId(`chart-${id}`).on("plotly_click", (event) => view(nearest(event.points[0].x)));
  }
  view(nearest(stopNow()));
}
lab.drawAll();
document.documentElement.dataset.ready = "yes";
