"""Equal and nearly equal rows: sign each (`signatures`), compare likely pairs (`similar_pairs`), join (`clusters`)."""
