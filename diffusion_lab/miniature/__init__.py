"""The world in small: procedural portraits of 64x64 pixels whose every attribute is known."""
