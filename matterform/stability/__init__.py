"""Energies above the convex hull: reference entries, corrections, reference energies of the elements."""
