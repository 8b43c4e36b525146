"""Training of diffusion models: settings, data split, losses, run folders."""
