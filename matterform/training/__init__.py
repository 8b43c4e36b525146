"""Training of any model from the loss of one example; nothing here depends on atoms."""
