"""AGeDi: score-based diffusion of atomistic structures. Not built yet; the base it will stand on is `matterform`."""
