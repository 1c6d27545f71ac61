"""Training an aesthetics head: ratings, their balance, the regression, and what it is worth."""
