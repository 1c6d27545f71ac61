"""The recipe that trains the miniature's networks from drawn portraits alone."""
