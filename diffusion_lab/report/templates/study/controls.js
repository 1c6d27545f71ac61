"use strict";
// Weights, ranges and filters. Everything on the page follows them.
const start = { weights: { ...lab.weights }, ranges: structuredClone(lab.ranges) };
const heaviest = Math.max(...Object.values(lab.weights), 0) || 1;
const controls = new Map(); // by metric -> { slider, output, low, high }

const follow = () => {
  lab.settle();
  told();
  lab.changed();
};

// The text under the sliders, and the state of the controls.
const told = () => {
  const total = Object.values(lab.weights).reduce((sum, w) => sum + w, 0);
  for (const [name, { slider, output }] of controls) {
    const share = total ? Math.round((100 * lab.weights[name]) / total) : 0;
    output.textContent = `${share} %`;
    slider.setAttribute("aria-valuetext", `${share} percent of the decision`);
  }
  const runs = lab.averaged(), lines = lab.shown().length, stop = lab.mean(runs, lab.stopStep), slope = lab.slope(runs), small = document.createElement("small");
  const limits = (one, digits) => (known(one.low) ? ` (${one.low.toFixed(digits)} to ${one.high.toFixed(digits)})` : "");
  const text = !total ? "All weights are 0, so nothing chooses the step."
    : stop === null ? "No run has a value of every weighted metric."
    : `Recommended stop: step ${stop.value.toFixed(0)}${limits(stop, 0)}`;
  small.textContent = !total || stop === null ? ""
    : `Mean over ${stop.subjects} subject${stop.subjects === 1 ? "" : "s"}, ${stop.runs} run${stop.runs === 1 ? "" : "s"}${slope && known(slope.value) ? `; ${slope.value.toFixed(1)}${limits(slope, 1)} steps per photo` : ""}.`;
  byId("live").replaceChildren(text, small);
  byId("reset").disabled = study.metrics.every((m) => lab.weights[m.name] === start.weights[m.name]
    && lab.ranges[m.name].every((end, i) => end === start.ranges[m.name][i]));
  byId("shown").textContent = `${lines} of ${study.runs.length} runs${runs.length < lines ? `, ${runs.length} of them in averages (every subject has every number of photos)` : ""}`;
};

const number = (metric, which) => {
  const input = document.createElement("input");
  Object.assign(input, { type: "number", step: "any", id: `range-${metric.name}-${which ? "high" : "low"}`, value: lab.ranges[metric.name][which] });
  input.setAttribute("aria-label", `${metric.label}: ${which ? "upper" : "lower"} end of its range`);
  input.addEventListener("input", () => {
    const ends = [...lab.ranges[metric.name]];
    ends[which] = input.value === "" ? NaN : Number(input.value);
    const valid = ends.every(Number.isFinite) && ends[1] - ends[0] >= study.narrowest;
    input.setAttribute("aria-invalid", String(!valid));
    input.title = valid ? "" : "The upper end must be greater than the lower one";
    if (!valid) return;
    lab.ranges[metric.name] = ends;
    follow();
  });
  return input;
};

const buildWeights = () => {
  const place = byId("weights");
  for (const metric of study.metrics) {
    const row = document.createElement("div"), name = document.createElement("label"), mark = document.createElement("i");
    const output = document.createElement("output"), slider = document.createElement("input"), ends = document.createElement("span");
    row.className = "weight";
    Object.assign(slider, { type: "range", min: 0, max: 10, step: 0.1, id: `weight-${metric.name}`, value: (5 * metric.weight) / heaviest });
    name.htmlFor = output.htmlFor = slider.id;
    mark.dataset.hue = metric.hue;
    name.append(mark, metric.spoken);
    slider.addEventListener("input", () => { lab.weights[metric.name] = (Number(slider.value) * heaviest) / 5; follow(); });
    const [low, high] = [number(metric, 0), number(metric, 1)];
    ends.className = "ends-of-range";
    ends.append("scaled from ", low, " to ", high);
    row.append(name, output, slider, ends);
    place.append(row);
    controls.set(metric.name, { slider, output, low, high });
  }
  byId("reset").addEventListener("click", () => {
    Object.assign(lab.weights, start.weights);
    lab.ranges = structuredClone(start.ranges);
    for (const metric of study.metrics) {
      const { slider, low, high } = controls.get(metric.name);
      slider.value = (5 * metric.weight) / heaviest;
      [low.value, high.value] = lab.ranges[metric.name];
      for (const input of [low, high]) input.setAttribute("aria-invalid", "false");
    }
    follow();
  });
};

const buildFilters = () => {
  for (const key of study.keys) {
    const values = ordered(study.runs.map((run) => String(run.keys[key.name])));
    if (values.length < 2) continue;
    const box = document.createElement("details"), head = document.createElement("summary"), list = document.createElement("div"), all = document.createElement("button");
    box.className = "filter";
    box.dataset.filter = key.name;
    const boxes = values.map((value) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "checkbox", checked: !lab.hidden[key.name].has(value), value });
      input.addEventListener("change", () => { lab.hidden[key.name][input.checked ? "delete" : "add"](value); say(); told(); lab.changed(); });
      label.append(input, value === "" ? "(none)" : value);
      list.append(label);
      return input;
    });
    const say = () => {
      const some = boxes.filter((input) => input.checked);
      head.textContent = `${key.label}: ${some.length === boxes.length ? "all" : some.length === 1 ? some[0].value : `${some.length} of ${boxes.length}`}`;
    };
    Object.assign(all, { type: "button", textContent: "All or none" });
    all.addEventListener("click", () => {
      const none = boxes.every((input) => input.checked);
      lab.hidden[key.name] = new Set(none ? values : []);
      for (const input of boxes) input.checked = !none;
      say(); told(); lab.changed();
    });
    list.append(all);
    box.append(head, list);
    byId("filters").append(box);
    say();
  }
  // One list is open at a time; a click elsewhere or Escape closes it.
  const lists = () => document.querySelectorAll("#filters details[open]");
  document.addEventListener("click", (event) => { for (const box of lists()) if (!box.contains(event.target)) box.open = false; });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") for (const box of lists()) { box.open = false; box.firstChild.focus(); } });
};

if (study.runs.length) { buildWeights(); buildFilters(); told(); }
