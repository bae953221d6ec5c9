"""Code for machines without a Docker engine or an image registry: starts an engine, builds images."""
