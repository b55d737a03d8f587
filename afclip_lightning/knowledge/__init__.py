"""Sentences on the look of abnormal items: knowledge bases by category, and descriptions of training images."""
