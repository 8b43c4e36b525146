"""Training of any model, given the loss of one example; independent of atoms."""
