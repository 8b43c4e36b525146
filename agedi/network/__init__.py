"""The score network: PaiNN with noise levels and properties."""
