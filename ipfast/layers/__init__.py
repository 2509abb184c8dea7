"""What the ghost engine knows of a type of layer: its part of a score, and of a gradient's norm."""
