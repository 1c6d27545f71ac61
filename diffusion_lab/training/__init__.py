"""The one training loop, its state, its losses, and what it measures about itself."""
