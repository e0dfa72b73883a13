"""What an evaluation writes: tables, a page, candidate lists, scores of queries, paired tests."""
