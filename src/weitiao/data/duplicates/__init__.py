"""Equal and nearly equal rows: sign each row (`signatures`), compare likely pairs exactly (`similar_pairs`), join (`clusters`)."""
