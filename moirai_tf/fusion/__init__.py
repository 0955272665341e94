"""Rules find what a backend fuses; coarsening merges it for the placement."""
