"""Equal and nearly equal rows: sign each (`signatures`), compare likely pairs exactly (`similar_pairs`), join (`clusters`)."""
