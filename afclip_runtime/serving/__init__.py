"""The web page and HTTP service for inspecting images."""
