"""Placed models made ready for where they are served: TensorFlow Serving, and ONNX runtimes."""
