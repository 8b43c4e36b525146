"""Sampling of crystals, with constraints and refinement by Markov chain Monte Carlo."""
