"""One request's batch over several devices: what may be divided, and the model that divides it."""
