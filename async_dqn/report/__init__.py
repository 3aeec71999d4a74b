"""What finished runs say: results, statistics, figures, pages."""
