"""Out of MindSpore: a checkpoint as an ONNX or MindIR file with its facts beside it, and such a file run as a model."""
