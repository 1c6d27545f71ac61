"""What a run is given: a subject's pictures, nested subsets of them, and the prompts of the evaluations."""
