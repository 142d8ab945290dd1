"""What is measured: one record for a request, one for a piece of work; they import nothing of ours."""
