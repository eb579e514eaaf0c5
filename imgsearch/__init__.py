"""Reverse image search for researchers: ingest, search and evaluate from notebooks."""
