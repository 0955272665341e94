"""The SavedModel on disk: reading, validating, writing, loading."""
