"""The Kubernetes manifests: a kustomize base, components and two overlays, and what is made of them here: their
rendered form, a table for the page, and fresh secrets for trying out. Nothing here talks to a cluster."""
