"""AtomFormer: a 3-D transformer for energies and forces. Not built yet; the base it will stand on is `matterform`."""
