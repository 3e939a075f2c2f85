"""Final answers: extraction, equality, task families, grading, and the processes that check mathematics and code."""
