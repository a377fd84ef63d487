"""The benchmark runner: scenarios beside their peers, in interleaved rounds."""
