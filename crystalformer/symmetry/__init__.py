"""Tables of the 230 space groups: Wyckoff positions and constraints on the lattice."""
