"""The benchmark of tokenizers: one protocol, rows kept as they are made, one report."""
