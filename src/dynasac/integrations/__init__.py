"""dynasac inside the tools that people already have; each module needs an extra of its own."""
