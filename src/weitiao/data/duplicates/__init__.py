"""Equal and nearly equal rows: sign each row (`signatures`), compare likely pairs (`similar_pairs`), join (`clusters`)."""
