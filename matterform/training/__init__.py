"""Training of any model: pytrees, losses of one example and batches; nothing here knows of atoms."""
