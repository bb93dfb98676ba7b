"""What the database holds: tables, rows and kept sums, and how records get into them."""
