"""Personal data and secrets in texts: find them (`search`), and mask, drop or replace them (`replacement`)."""
