"""From files to batches. Nothing here imports MindSpore: worker processes start in a fraction of a second."""
