"""Prompts: templates, ensembles of sentences, learnable tokens."""
