"""Can the metrics be trusted? Tests them on synthetic images with known ground truth.

    python -m diffusion_lab.recipes.trust FOLDER [--people 20]

The renderer knows the answer to every question: who is shown, how degraded, how varied, what is worn. The
metrics of `diffusion_lab.evaluation.metrics` answer each one with the miniature's own encoders, for people on
whom no encoder was trained. One statistic per person (or set) is averaged, with a 95 % interval over people.
`FOLDER/trust.json` contains all numbers, `FOLDER/trust.md` the table, `FOLDER/trust.html` the curves behind
the means.
"""
