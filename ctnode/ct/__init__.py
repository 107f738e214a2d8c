"""The science: arrays in, arrays out; no database, no network."""
