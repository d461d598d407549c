"""What flows between the operators: batches of columns, results, dead letters, output records."""
