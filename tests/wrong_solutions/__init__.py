"""Three wrong answers to each exercise, each wrong in another way: what the checks must tell apart."""
