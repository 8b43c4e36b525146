"""The transformer over atoms: attention biases, heads, features of elements, parameters."""
