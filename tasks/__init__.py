"""The stages, one module each: plain functions first, the thin Prefect task last."""
