"""Weights from everywhere: files of PyTorch, timm, MindCV and this suite, told apart by what is in them. NumPy only."""
