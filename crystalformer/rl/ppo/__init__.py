"""Fine-tuning by proximal policy optimisation."""
