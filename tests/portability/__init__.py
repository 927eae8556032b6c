"""Where the built plugin has to run: other releases of Debian without Python, odd surroundings, other processors."""
