"""Making things to ship: GGUF files, the page, packed bundles. Imports nothing heavy by itself."""
