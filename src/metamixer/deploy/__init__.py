"""Deploy: merge for inference, export to a runtime, and check there that the export still says the same.

One file per runtime; ``export.py`` holds what they share. Importing the package itself costs nothing, so that the
process in which a runtime is tried need not load PyTorch.
"""
