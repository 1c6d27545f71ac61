"""The page of a study: one HTML file made from the files of its runs, with its tables and charts beside it."""
