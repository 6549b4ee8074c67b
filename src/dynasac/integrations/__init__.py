"""Dyna planning and its records inside what people already use."""
