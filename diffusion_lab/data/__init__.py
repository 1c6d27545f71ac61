"""The inputs of a run: a subject's pictures, nested subsets of them, and the prompts of the evaluations."""
