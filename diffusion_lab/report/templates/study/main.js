"use strict";
// The table of all runs, and the start.
const drawRuns = () => {
  const hidden = new Set(lab.shown().map((run) => run.index));
  const rows = study.runs.map((run) => {
    const row = document.createElement("tr"), head = document.createElement("th"), name = document.createElement(run.report ? "a" : "span"), stop = lab.stop(run, -1);
    head.scope = "row";
    head.className = "run";
    name.textContent = head.title = run.name;
    if (run.report) name.href = `${run.link}/report.html`;
    head.append(name);
    const texts = [run.status, ...study.columns.map((key) => run.keys[key]), run.steps.length, stop === null ? "-" : run.steps[stop],
      ...study.metrics.map((m) => { const value = stop === null ? null : run.values[m.name]?.[stop] ?? null; return value === null ? "-" : value.toFixed(3); })];
    row.append(head, ...texts.map((text) => { const td = document.createElement("td"); td.textContent = text; return td; }));
    row.hidden = !hidden.has(run.index);
    return row;
  });
  byId("runs-body").replaceChildren(...rows);
};
if (byId("runs-body")) lab.section("runs", drawRuns);
window.addEventListener("beforeprint", lab.drawEverything);
lab.drawAll();
document.documentElement.dataset.ready = "yes"; // for scripts that wait for the page
