"""Material that training rows are made from."""
