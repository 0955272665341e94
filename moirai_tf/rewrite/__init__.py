"""From a placement to a rewritten SavedModel and back."""
