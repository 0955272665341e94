"""The laboratory: equipment that tests and measurements need and users never do."""
