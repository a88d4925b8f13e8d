"""The `imprimatur` command. Each module holds the commands of one subject; `main` puts them together."""

import os

# gRPC's core writes its own notices ("Got goaway") among ours; what matters of them comes as errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
