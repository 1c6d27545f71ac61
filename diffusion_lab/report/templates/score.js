"use strict";
// Sorts the images by a metric, the best first; those without a value stay last.
const metrics = JSON.parse(document.getElementById("data").textContent).metrics;
const all = document.getElementById("all");
const shots = [...all.children];

document.getElementById("sort").addEventListener("change", (event) => {
  const metric = metrics.find((one) => one.name === event.target.value);
  const key = (shot) => {
    const number = Number(shot.dataset.number);
    if (!metric) return number;
    const value = metric.values[number];
    return value === null ? Infinity : metric.higher ? -value : value;
  };
  all.append(...[...shots].sort((a, b) => key(a) - key(b) || Number(a.dataset.number) - Number(b.dataset.number)));
});

document.documentElement.dataset.ready = "yes"; // for scripts that wait for the page
