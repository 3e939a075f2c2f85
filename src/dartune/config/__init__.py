"""Settings: schema, loading from YAML and flags, arms, matrices, rewrite prompts, and user-defined parts by path."""
