"""The gateway service: accepts jobs over gRPC, stores them, answers, streams, and decides what runs next."""
