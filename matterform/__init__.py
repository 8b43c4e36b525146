"""What the model families share: atoms, files, training, evaluation."""
