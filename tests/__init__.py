"""Tests of moirai_tf: real TensorFlow, real SavedModels, real solvers."""
