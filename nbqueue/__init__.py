"""nbqueue: a distributed task queue that is native to Jupyter."""
