"use strict";
// Shared by both pages: the data, the colour scheme, the charts.
const lab = { data: JSON.parse(document.getElementById("data").textContent), charts: new Map() };
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");

// A copy of part of a figure with every light colour replaced by that of the dark scheme.
lab.coloured = (part) => {
  if (Array.isArray(part)) return part.map(lab.coloured);
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([k, v]) => [k, lab.coloured(v)]));
  return darkScheme.matches && typeof part === "string" && Object.hasOwn(lab.data.dark, part) ? lab.data.dark[part] : part;
};

lab.draw = (id) => {
  const place = document.getElementById(`chart-${id}`), figure = lab.charts.get(id);
  if (place && figure) {
    Plotly.react(place, lab.coloured(figure.data), { ...lab.coloured(figure.layout), autosize: true }, { displayModeBar: false, responsive: true });
  }
  return place;
};

lab.drawAll = () => {
  for (const id of lab.charts.keys()) lab.draw(id);
  for (const mark of document.querySelectorAll("[data-hue]")) mark.style.background = lab.coloured(mark.dataset.hue);
};

for (const [id, figure] of Object.entries(lab.data.figures)) if (figure) lab.charts.set(id, figure);

darkScheme.addEventListener("change", lab.drawAll);
