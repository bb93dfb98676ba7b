"""What is read from the tables: records, histories, totals, spend. It writes nothing."""
