"""A trained model for other programs: a Hugging Face directory with its card, and ONNX graphs."""
