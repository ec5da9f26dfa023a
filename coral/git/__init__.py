"""The user's own git repository around coral's, spoken to through git itself."""
