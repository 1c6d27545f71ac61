"""Can the metrics be trusted? They are asked about a world whose truth is known.

    python -m diffusion_lab.recipes.trust FOLDER [--people 20]

Every question has an answer that the drawing program knows: who is shown, how spoilt, how varied, what is worn. Each
is put to the metrics of `diffusion_lab.evaluation.metrics` through the miniature's own encoders, for people whom no encoder was
trained on. One statistic a person (or set) is averaged with a 95 % interval over people. `FOLDER/trust.json` has all
numbers, `FOLDER/trust.md` the table, `FOLDER/trust.html` the curves behind the means.
"""
