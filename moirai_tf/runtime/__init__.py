"""Real TensorFlow servers: sessions on them, what they say of themselves, local test clusters."""
