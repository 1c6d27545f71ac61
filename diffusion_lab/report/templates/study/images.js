"use strict";
// The images of one run at one step: small ones from the page; the whole sheet is a file beside the page.
lab.choose = (run, step, { redraw = true } = {}) => {
  chosen.run = run;
  chosen.step = Math.min(Math.max(step, 0), run.steps.length - 1);
  byId("run").value = run.index;
  const slider = byId("step"), at = run.steps[chosen.step];
  Object.assign(slider, { max: run.steps.length - 1, value: chosen.step });
  slider.setAttribute("aria-valuetext", `step ${at}`);
  byId("step-name").textContent = at;
  byId("previous").disabled = chosen.step === 0;
  byId("next").disabled = chosen.step === run.steps.length - 1;
  showValues(run, chosen.step);
  showImages(run, at);
  if (redraw) drawDynamics();
};

const showValues = (run, step) => {
  const rows = study.metrics.map((metric) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell_ = document.createElement("td"), limits = document.createElement("span");
    const [value, low, high] = [run.values, run.low, run.high].map((of) => of[metric.name]?.[step] ?? null);
    head.scope = "row";
    head.textContent = metric.label;
    limits.textContent = low === null ? "" : ` ${low.toFixed(3)} to ${high.toFixed(3)}`;
    cell_.append(value === null ? "no value" : value.toFixed(3), limits);
    row.append(head, cell_);
    return row;
  });
  byId("step-values").replaceChildren(...rows);
};

const showImages = (run, step) => {
  const place = byId("images"), link = byId("sheet-link"), report = byId("run-link"), note = byId("images-note");
  const row = run.thumbs ? run.thumbs.steps.indexOf(step) : -1, { images, side } = study.thumbnails;
  place.replaceChildren();
  byId("sheet").hidden = true;
  for (let column = 0; row >= 0 && column < images; column += 1) {
    const image = document.createElement("div"), shown = Math.max(96, side);
    image.className = "thumb";
    image.setAttribute("role", "img");
    image.setAttribute("aria-label", `Image ${column + 1} of ${run.name} at step ${step}`);
    const scale = shown / side;
    image.style.cssText = `width:${shown}px;height:${shown}px;background-image:url(${run.thumbs.source});background-size:${images * side * scale}px auto;background-position:-${column * shown}px -${row * shown}px`;
    place.append(image);
  }
  const there = run.sheets.includes(step);
  note.textContent = row >= 0 ? `The first ${images === 1 ? "image" : `${images} images`} of step ${step}; the same prompts and noise at every step.`
    : there ? "No small image of this step is kept in the page." : "There are no images of this step in the run's folder.";
  link.hidden = !there;
  link.dataset.source = there ? `${run.link}/samples/step-${String(step).padStart(6, "0")}.png` : "";
  report.hidden = !run.report;
  if (run.report) report.href = `${run.link}/report.html`;
};

const buildImages = () => {
  byId("run").append(...study.runs.map((run) => new Option(run.name, run.index)));
  byId("run").addEventListener("change", () => { const run = study.runs[Number(byId("run").value)]; lab.choose(run, lab.stop(run, -1) ?? 0); });
  byId("step").addEventListener("input", () => lab.choose(chosen.run, Number(byId("step").value)));
  byId("previous").addEventListener("click", () => lab.choose(chosen.run, chosen.step - 1));
  byId("next").addEventListener("click", () => lab.choose(chosen.run, chosen.step + 1));
  byId("to-stop").addEventListener("click", () => lab.choose(chosen.run, lab.stop(chosen.run, -1) ?? chosen.step));
  byId("sheet-link").addEventListener("click", () => {
    const sheet = byId("sheet");
    sheet.src = byId("sheet-link").dataset.source;
    sheet.alt = `All images of ${chosen.run.name} at step ${chosen.run.steps[chosen.step]}`;
    sheet.hidden = false;
  });
  byId("sheet").addEventListener("error", () => { byId("sheet").hidden = true; byId("images-note").textContent = "The sheet cannot be loaded: the run's folder is not where it was."; });
  const first = study.runs.find((run) => run.thumbs) ?? study.runs[0];
  lab.choose(first, lab.stop(first, -1) ?? 0, { redraw: false });
};
if (byId("dynamics") && study.runs.length) buildImages();
