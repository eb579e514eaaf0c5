"""Vectors in Milvus, everything else in MySQL or SQLite."""
