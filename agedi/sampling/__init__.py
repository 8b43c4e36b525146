"""Sampling by the reverse process: requests, solvers, guidance, inpainting."""
