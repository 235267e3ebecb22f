"""The pipeline as a reader wants to see it, and the command line."""
