"use strict";
// Means over subjects with 95 % intervals: diffusion_lab/studies/bootstrap.py again, on the replicates of the page.

const bySubject = (runs) => {
  const groups = new Map();
  for (const run of runs) {
    if (!groups.has(run.subject)) groups.set(run.subject, []);
    groups.get(run.subject).push(run);
  }
  return [...groups.values()];
};
const average = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
const spread = (values, ddof) => { const middle = average(values); return values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - ddof); };

// Student's t for 95 %: from a table along 1 / degrees, linear in between.
lab.student = (degrees) => {
  const { table } = study.student, at = Math.min(1, 1 / degrees) * (table.length - 1), below = Math.min(Math.floor(at), table.length - 2);
  return table[below] + (at - below) * (table[below + 1] - table[below]);
};

// q: for each subject [estimate, then one value per replicate]. -> { value, low, high, error, degrees }
lab.interval = (q, prompts) => {
  const size = q.length, value = average(q.map((one) => one[0])), none = { value, low: null, high: null, error: 0, degrees: 0 };
  const count = q[0].length - 1, factor = prompts > 1 ? prompts / (prompts - 1) : 1;
  const means = Array.from({ length: count }, (_, r) => average(q.map((one) => one[r + 1])));
  const byPrompts = count ? spread(means, 0) * factor : 0;
  let variance = byPrompts, degrees = prompts - 1;
  if (size > 1) {
    const bySubjects = spread(q.map((one) => one[0]), 1) / size, own = means.map(() => 0);
    let both = 0;
    if (count) {
      for (const one of q) both += spread(own.map((_, r) => one[r + 1] - means[r]), 0);
      both *= factor / (size - 1) / size;
    }
    if (byPrompts === 0) {
      [variance, degrees] = [bySubjects, size - 1];
    } else {
      variance = Math.max(bySubjects + byPrompts - both, bySubjects / 2);
      const squares = bySubjects ** 2 / (size - 1) + byPrompts ** 2 / Math.max(1, prompts - 1) + both ** 2 / (size - 1) / Math.max(1, prompts - 1);
      degrees = squares ? Math.max(variance ** 2 / squares, size - 1) : 0;
    }
  }
  const error = Math.sqrt(variance);
  if (error <= 1e-9 * Math.max(Math.abs(value), 1e-12) || degrees <= 0) return none;
  const reach = lab.student(degrees) * error;
  return { value, low: value - reach, high: value + reach, error, degrees };
};

// An estimate of lab.estimate with a variance of no less than this.
lab.atLeast = (one, variance) => {
  if (!one || variance <= 0 || (known(one.low) && one.error ** 2 >= variance)) return one;
  const degrees = known(one.low) ? one.degrees : Math.max(one.subjects, 2) - 1, reach = lab.student(degrees) * Math.sqrt(variance);
  return { ...one, low: one.value - reach, high: one.value + reach };
};

// of(runs of one subject, replicate) -> number or null. A replicate without a value counts as the estimate.
lab.estimate = (runs, of) => {
  const q = [], used = [];
  for (const group of bySubject(runs)) {
    const estimate = of(group, -1);
    if (!known(estimate)) continue;
    used.push(...group);
    q.push([estimate, ...Array.from({ length: replicates }, (_, r) => { const one = of(group, r); return known(one) ? one : estimate; })]);
  }
  if (!q.length) return null;
  return { ...lab.interval(q, Math.max(...used.map((run) => run.prompts))), subjects: q.length, runs: used.length };
};

// Mean over subjects of the means over each subject's runs. of(run, replicate) -> number or null.
lab.mean = (runs, of) => lab.estimate(runs.filter((run) => known(of(run, -1))), (group, replicate) => {
  let sum = 0, count = 0;
  for (const run of group) {
    const value = of(run, replicate);
    if (known(value)) { sum += value; count += 1; }
  }
  return count ? sum / count : null;
});

// The part of a slope's variance that comes from evaluating only every so many steps (studies/slope.py).
const leastVariance = (runs) => {
  const gaps = runs.filter((run) => run.steps.length > 1).map((run) => Math.max(...run.steps.slice(1).map((step, i) => step - run.steps[i]))).sort((a, b) => a - b);
  if (!gaps.length) return 0;
  const gap = (gaps[(gaps.length - 1) >> 1] + gaps[gaps.length >> 1]) / 2;
  return gap ** 2 / 12 / Math.max(1, [...new Set(runs.map((run) => run.n))].reduce((sum, n) => sum + n * n, 0));
};

// Slope of the recommended step on the number of photos through the origin, of each subject: sum n * stop / sum n^2.
lab.slope = (runs) => {
  const used = runs.filter((run) => known(run.n) && lab.stop(run, -1) !== null);
  return lab.atLeast(lab.estimate(used, (group, replicate) => {
    let top = 0, bottom = 0;
    for (const run of group) {
      const stop = lab.stop(run, replicate);
      if (stop !== null) { top += run.n * run.steps[stop]; bottom += run.n * run.n; }
    }
    return bottom ? top / bottom : null;
  }), leastVariance(used));
};

lab.stopStep = (run, replicate) => { const at = lab.stop(run, replicate); return at === null ? null : run.steps[at]; };
lab.atStop = (name) => (run, replicate) => { const at = lab.stop(run, replicate); return at === null ? null : lab.value(run, name, at, replicate); };
