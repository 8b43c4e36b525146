"""Fine-tuning by direct preference optimisation."""
