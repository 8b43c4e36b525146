"""Relaxation, energies and forces by the force field of a diffusion model."""
