"""The transformer, its parameters, and the distributions that it predicts."""
