"""Energies, forces, labels and features from a trained model; errors against known values."""
