"""Model families: one file each. `of(pipe)` is the family of a loaded pipeline."""
