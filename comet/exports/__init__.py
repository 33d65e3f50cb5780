"""A fine-tuned model in ONNX: traced, fused, in int8, and compared with what it was made of."""
