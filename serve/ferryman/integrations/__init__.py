"""Ferryman inside other engines."""
