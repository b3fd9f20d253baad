"""FILES in, files out: one module a stage, plain functions with typed arguments. Knows nothing of Prefect."""
