"use strict";
// The recommended stop against the number of photos, with rules of thumb and the slope through the origin.
const drawStop = () => {
  const runs = lab.averaged().filter((run) => known(run.n) && lab.stop(run, -1) !== null);
  const by = byId("stop-by").value, groups = groupBy(runs, by);
  lab.legend("legend-stop", groups);
  lab.mixed("mixed-stop", runs, "n", by);
  const figure = lab.figure("training photos", "recommended stop, steps", { right: 40 });
  figure.layout.margin.t = 26;
  const most = Math.max(1, ...runs.map((run) => run.n)), last = Math.max(1, ...runs.flatMap((run) => run.steps));
  const right = most * 1.06, top = last * 1.08;
  Object.assign(figure.layout.xaxis, { range: [0, right] });
  Object.assign(figure.layout.yaxis, { range: [-0.02 * top, top] });
  const rows = [], slopes = [];
  groups.forEach((group, i) => {
    const offset = beside(i, groups.length, right / 120);
    figure.data.push({ type: "scatter", mode: "markers", x: group.runs.map((run) => run.n + offset), y: group.runs.map((run) => run.steps[lab.stop(run, -1)]),
      text: group.runs.map((run) => plain(run.name)), customdata: group.runs.map((run) => [run.index, lab.stop(run, -1)]), hovertemplate: "%{text}<br>stop at step <b>%{y}</b><extra></extra>",
      opacity: 0.4, marker: { color: group.style.colour, size: 6, symbol: `${group.style.symbol}-open` } });
    const points = byNumber(group.runs).map((of) => {
      const one = lab.mean(of.runs, lab.stopStep);
      rows.push({ by: group.name, n: Number(of.name), ...limits(one), subjects: one.subjects, runs: one.runs });
      return { x: Number(of.name), ...limits(one), note: `mean for ${of.name} photos; ${counted(one)}` };
    });
    lab.series(figure, { ...group.style, dash: "solid" }, points, { lines: false, name: by ? group.label : "", digits: 0, offset });
    const slope = lab.slope(group.runs);
    if (slope !== null && known(slope.value)) {
      figure.data.push({ type: "scatter", mode: "lines", x: [0, right], y: [0, slope.value * right], hoverinfo: "skip", line: { color: group.style.colour, width: 2, dash: group.style.dash } });
      slopes.push({ group, slope });
    }
  });
  for (const [name, rule] of Object.entries(study.rules)) {
    const leaves = Math.min(right, top / rule); // where the line leaves the chart
    figure.data.push({ type: "scatter", mode: "lines", x: [0, leaves], y: [0, rule * leaves], hovertemplate: `rule of thumb ${plain(name)}: ${rule} steps per photo<extra></extra>`, line: { color: study.muted, width: 1.2, dash: "dot" } });
    figure.layout.annotations.push({ x: leaves, y: Math.min(rule * leaves, top), showarrow: false, xanchor: leaves < right ? "center" : "left", yanchor: leaves < right ? "bottom" : "middle", xshift: leaves < right ? 0 : 4,
      text: `${rule}n`, font: { size: 11, color: study.muted } });
  }
  lab.apart(figure.layout.annotations, right);
  lab.put("stop", figure, rows);
  slopeTable(slopes, by);
  const late = runs.filter((run) => lab.stop(run, -1) === run.steps.length - 1).length;
  byId("late").textContent = late ? `In ${late} of ${runs.length} runs the recommended stop is the last evaluation: more steps may be better still, so these are lower limits.` : "";
  byId("late").hidden = !late;
};

// Names at the upper edge that would overlap move right.
lab.apart = (names, right) => {
  const top = names.filter((one) => one.xanchor === "center").sort((a, b) => a.x - b.x);
  for (let i = 1; i < top.length; i += 1) top[i].x = Math.max(top[i].x, top[i - 1].x + right * 0.05);
};

const slopeTable = (slopes, by) => {
  const rows = slopes.map(({ group, slope }) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = by ? group.label : "all runs";
    const texts = [slope.value.toFixed(1), known(slope.low) ? `${slope.low.toFixed(1)} to ${slope.high.toFixed(1)}` : "-", slope.subjects, slope.runs];
    row.append(head, ...texts.map((text) => { const td = document.createElement("td"); td.textContent = text; return td; }));
    return row;
  });
  byId("slopes").replaceChildren(...rows);
  lab.tables.set("slopes", slopes.map(({ group, slope }) => ({ by: group.name, slope: slope.value, low: slope.low, high: slope.high, subjects: slope.subjects, runs: slope.runs })));
};

const buildStop = () => {
  lab.card(byId("stop-card"), "stop", "Recommended stop", "large: mean over subjects with its interval; small: runs", "high");
  choice("stop-by", study.split || (several("gender") ? "gender" : ""));
  byId("stop-by").addEventListener("change", drawStop);
  lab.section("stop", drawStop);
};
if (byId("stop")) buildStop();
