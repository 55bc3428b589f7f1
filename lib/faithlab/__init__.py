"""Faithful Reasoning Lab: does a model's answer depend on the reasoning it shows, and can training make it so?"""

__version__ = "0.1.0"
