"""One file for each distinct failure: `CASE`, with a faulty and a healthy training."""
