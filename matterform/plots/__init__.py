"""Figures: learning curves, crystals in projection, galleries of samples."""
