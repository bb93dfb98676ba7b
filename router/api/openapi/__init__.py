"""The OpenAPI documents and JSON Schemas of ``contracts/``."""
