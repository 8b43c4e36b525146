"""Forward processes of positions and species, and their noise distributions."""
