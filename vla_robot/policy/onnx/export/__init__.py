"""Writes a policy's folder of graphs; needs torch with its exporter, and the packages onnx and onnxscript."""
