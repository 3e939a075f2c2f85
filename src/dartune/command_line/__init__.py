"""Parts of the command line: the help on keys of the config, and shell completion."""
