"""Keys and ids as numbers: hashing, slots, dictionaries of texts."""
