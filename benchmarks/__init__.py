"""What Imprimatur reaches on this machine. Run by `make measure`; no part of the product, nor of its tests."""
