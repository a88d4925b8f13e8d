"""The reviewer service: takes review messages, claims jobs, runs engines, decides, stores the result."""
